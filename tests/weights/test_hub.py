"""Names of a hub, without a network: the hub is a folder."""

import hashlib
import re

import numpy as np
import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")

from frcnn_jax.weights import files as weight_files  # noqa: E402
from frcnn_jax.weights import hub as pretrained_hub  # noqa: E402
from frcnn_jax.weights import load_backbone  # noqa: E402


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one file, in the layout of the package's cache; counts what is asked."""
    weight_files.write_safetensors(tmp_path / "x", {"a": np.arange(3.0)})
    data = (tmp_path / "x").read_bytes()
    blob = tmp_path / "blobs" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(data)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if repository != "timm/net.x_1k":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        return str(link)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return blob, asked


def test_a_name_is_a_repository_a_revision_and_a_file(hub):
    blob, asked = hub
    for name in ("hf:timm/net.x_1k", "hf:timm/net.x_1k@v1.0/folder/w.safetensors"):
        path = pretrained_hub.fetch(name)
        assert path.resolve() == blob and path.suffix == ".safetensors"
    assert asked == [
        ("timm/net.x_1k", "model.safetensors", None),
        ("timm/net.x_1k", "folder/w.safetensors", "v1.0"),
    ]
    for wrong in ("hf:resnet50", "hf:", "hf:a/b@", "hf:a b/c"):
        with pytest.raises(ValueError, match="expected hf:OWNER/REPOSITORY"):
            pretrained_hub.fetch(wrong)


def test_a_damaged_file_is_not_read(hub):
    blob, _ = hub
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged: its SHA-256 is .*delete"):
        pretrained_hub.fetch("hf:timm/net.x_1k")


def test_without_a_network_the_error_says_what_to_download(hub):
    with pytest.raises(FileNotFoundError) as error:
        load_backbone("hf:timm/other", {"params": {"backbone": {}}})
    for part in ("'hf:timm/other'", "no connection", "/timm/other/resolve/main/model."):
        assert part in str(error.value)


def test_the_real_package_offline_fails_in_the_same_words(monkeypatch, tmp_path):
    """Its own error for a file that is not in the cache is one of those we catch."""
    offline = huggingface_hub.errors.LocalEntryNotFoundError
    assert issubclass(offline, OSError)
    real = huggingface_hub.hf_hub_download

    def from_cache(repository, file, revision=None):
        return real(
            repository,
            file,
            revision=revision,
            cache_dir=tmp_path,
            local_files_only=True,
        )

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_cache)
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        pretrained_hub.fetch("hf:timm/resnet50.a1_in1k")


def test_the_file_fills_the_backbone(hub):
    """The name goes to the same reader as a path does."""
    with pytest.raises(ValueError, match="not in the model: backbone.body.a"):
        load_backbone("hf:timm/net.x_1k", {"params": {"backbone": {}}})


def test_the_licence_is_said_once_and_loudly_where_it_is_not_commercial(hub, caplog):
    pretrained_hub.say_licence.cache_clear()
    caplog.set_level("INFO", logger=pretrained_hub.__name__)
    for _ in range(2):
        pretrained_hub.fetch("hf:timm/net.x_1k")
        pretrained_hub.say_licence("timm/vit_base_patch16_224.mae")
        pretrained_hub.say_licence("timm/swin_tiny_patch4_window7_224.ms_in1k")
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "WARNING", "INFO"]
    unknown, mae, swin = (record.getMessage() for record in caplog.records)
    assert "see its page" in unknown
    assert "CC BY-NC 4.0, NOT for commercial use" in mae
    assert swin.endswith("the weights are under MIT")


def test_the_table_names_the_licences_that_the_patterns_give():
    table = pretrained_hub.__doc__.partition("| network |")[2]
    rows = re.findall(r"`hf:(timm/[^`]+)` \| ([^|]+) \|", table)
    assert len(rows) >= 8
    for repository, text in rows:
        assert text.startswith(pretrained_hub.licence(repository) or "nothing")

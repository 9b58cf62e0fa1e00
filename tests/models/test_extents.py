"""What surrounds an image on its canvas changes nothing: every backbone, one line."""

import pytest
from flax import linen as nn

from frcnn_jax.models import (
    convnext,
    layers,
    mobilenet,
    resnet,
    swin,
    tiny,
    vgg,
    vit,
    zf,
)
from frcnn_jax.models.checks import check_extent

PLAIN = dict(depth=2, width=32, heads=2, patch=8, positions=4)
BACKBONES = dict(
    tiny=lambda: tiny.Backbone(widths=(8, 16), groups=4),
    resnet=lambda: resnet.Backbone(depth=10, out_strides=(4, 8)),
    zf=lambda: zf.Backbone(),
    convnext=lambda: convnext.Backbone(depths=(1, 1, 1, 1), width=8),
    swin=lambda: swin.Backbone(depths=(2, 2, 1, 1), width=32, out_strides=(4, 8)),
    vit=lambda: vit.Backbone(**PLAIN, relative=5, window=2, global_blocks=(1,)),
)
SLOW = dict(
    bottlenecks=lambda: resnet.Backbone(depth=50, stride_in_1x1=True),
    remat=lambda: resnet.Backbone(depth=18, remat=True),
    dc5=lambda: resnet.Backbone(depth=10, dilated_c5=True, out_strides=(16,)),
    resnext=lambda: resnet.Backbone(
        depth=50, groups=4, group_width=8, out_strides=(4, 8)
    ),
    groups=lambda: resnet.Backbone(depth=10, norm="group"),
    mobilenet=lambda: mobilenet.Backbone(),
    vgg=lambda: vgg.Backbone(),
    alexnet_norm=lambda: zf.Backbone(lrn_window=(1, 1, 3)),
    convnext_remat=lambda: convnext.Backbone(
        depths=(1, 1, 2, 1), width=8, out_norm=False, remat=True
    ),
    vit_remat=lambda: vit.Backbone(
        **PLAIN, relative=5, window=3, global_blocks=(0,), remat=True
    ),
    dinov2=lambda: vit.Backbone(**(vit.DINOV2 | PLAIN)),
    swin_remat=lambda: swin.Backbone(depths=(2, 2, 2, 2), width=32, remat=True),
)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_keeps_to_the_extent(name):
    check_extent(BACKBONES[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_other_forms_keep_to_the_extent(name):
    check_extent(SLOW[name]())


class Forgets(nn.Module):
    """A backbone whose second convolution reads beyond the extent."""

    @nn.compact
    def __call__(self, images, extent=None):
        x = layers.inside(images, extent)
        x = layers.relu(layers.Conv(4, 3, 2, name="first")(x))
        return {2: layers.Conv(4, name="second")(x)}


def test_a_layer_that_forgot_is_found():
    with pytest.raises(ValueError, match="the map of stride 2 changes with what lies"):
        check_extent(Forgets(), gradients=False)


def test_windows_of_swin_end_with_the_extent():
    """Sizes with one window, with several, and with a part of one, on one canvas."""
    for size in ((20, 100), (28, 57), (84, 30)):
        check_extent(
            swin.Backbone(depths=(2, 1, 1, 1), width=32, out_strides=(4,)),
            size=size,
            canvas=(120, 140),
            gradients=False,
        )

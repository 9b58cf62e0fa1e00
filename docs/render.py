"""What the pages take from the repository, so that nothing is written down twice.

    python docs/render.py && zensical build --strict

writes the pages to build/docs, which `mkdocs.yml` names, and the site to build/site.
A line of its own in a page stands for

    {{ readme: Results }}     that section of README.md, without its heading
    {{ file: CHANGELOG.md }}  a whole file, without its title
    {{ docstrings: scripts }} the docstring of every Python file of a folder
    {{ code: examples/x.py }} a file as a code block
    {{ modules: frcnn_jax/data }}  the docstrings of all modules of a package

Links out of `docs/` become plain text. In docstrings, what the interpreter would show
(`>>> ...`) becomes a code block.
"""

import ast
import pathlib
import re
import shutil
import textwrap

import griffe

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "docs"
TOKEN = re.compile(r"^\{\{ (\w+): (.+) \}\}$", re.M)


def main():
    """Every page to build/docs; a page that the navigation forgets is an error."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(ROOT / "docs", OUTPUT, ignore=ignored)
    pages = {path.relative_to(OUTPUT).as_posix(): path for path in OUTPUT.rglob("*.md")}
    named = re.findall(r"[\w/.-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)
    if odd := sorted(pages.keys() ^ set(named)):
        raise ValueError(
            f"{', '.join(odd)}: in docs/ or under `nav` of mkdocs.yml, but not in both"
        )
    for name, path in pages.items():
        path.write_text(fill(path.read_text(), "../" * name.count("/")))


def fill(markdown, up):
    """Fill in the tokens of a page; `up` leads from its folder to docs/."""
    kinds = dict(
        readme=_section,
        file=_file,
        docstrings=_docstrings,
        code=_code,
        modules=_modules,
    )
    return TOKEN.sub(lambda m: kinds[m[1]](m[2], up), markdown)


def _section(title, up):
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if not found:
        raise ValueError(f"README.md has no section {title!r}")
    return _links(found[1], up)


def _file(name, up):
    return _links(re.sub(r"\A# .*\n", "", (ROOT / name).read_text()), up)


def _code(name, _):
    return f"```python\n{(ROOT / name).read_text().rstrip()}\n```"


def _modules(folder, _):
    return "\n\n".join(
        f"## {path.stem}\n\n::: {folder.replace('/', '.')}.{path.stem}\n"
        "    options: {heading_level: 3}"
        for path in sorted((ROOT / folder).glob("[!_]*.py"))
    )


def _docstrings(folder, _):
    parts = []
    for path in sorted((ROOT / folder).glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text()))
        if text and path.name != "__init__.py":
            title, _, rest = text.partition("\n")
            parts += [f"## `{path.name}`", title]
            parts += map(_block, filter(str.strip, rest.split("\n\n")))
    return "\n\n".join(parts)


def _block(text):
    """A paragraph as it is; commands and tables of numbers as a code block."""
    text = text.strip("\n")
    if re.match(r" |python |make ", text):
        return f"```bash\n{textwrap.dedent(text)}\n```"
    return text


def _links(text, up):
    def fix(match):
        label, target = match[1], match[2]
        if target.startswith("docs/"):
            return f"[{label}]({up}{target.removeprefix('docs/')})"
        return match[0] if re.match(r"https?:|#", target) else label

    text = text.replace('src="docs/', f'src="{up}')
    return re.sub(r"\[([^]]*)\]\(([^)]*)\)", fix, text)


class Docstrings(griffe.Extension):
    """Fences interactive examples, which Markdown would take for quotations."""

    def on_object(self, *, obj, **_):
        """Called by griffe for every module, class and function."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)+",
                lambda m: f"```pycon\n{m[0].rstrip()}\n```\n",
                obj.docstring.value,
                flags=re.M,
            )


if __name__ == "__main__":
    main()

"""What the site needs beside docs/: figures, notebooks and the changelog, links to them, and llms.txt.

Pages are read in two places. On a code host they link to ``../../figures/x.png``, beside docs/; on the site there is
nothing beside it, so these files join the site in folders of the same names and the links are shortened by one step.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent
BESIDE_DOCS = ("figures/*.png", "notebooks/*.ipynb", "CHANGELOG.md")
NAMES_MARK = "<!-- names -->"
PAGE_MARK = re.compile(r"<!-- page: (\S+\.html) -->")


@event_priority(100)  # before the notebooks' plugin, which looks for notebooks among the files
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Let what lies beside docs/ join the site."""
    for pattern in BESIDE_DOCS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links resolve on the site, and list the public names where a page asks for them."""
    if NAMES_MARK in markdown:
        markdown = markdown.replace(NAMES_MARK, render_names())
    if page.file.src_uri.endswith(".ipynb"):
        cells = json.loads(markdown)["cells"]
        page.meta["description"] = summarize("".join(cells[0]["source"]))
        return markdown
    page.meta.setdefault("description", summarize(markdown))
    return rewrite_links(markdown, page.file.src_uri)


def rewrite_links(markdown: str, src_uri: str) -> str:
    """Shorten links out of docs/ by the step that the site does not have; code is left as it is.

    Example:
        >>> rewrite_links("![x](../../figures/x.png)", "results/evidence.md")
        '![x](../figures/x.png)'
        >>> rewrite_links("[x](docs/results/judges.md)", "CHANGELOG.md")
        '[x](results/judges.md)'
    """
    if (ROOT / src_uri).exists() and not (ROOT / "docs" / src_uri).exists():  # the page itself lies beside docs/
        return markdown.replace("](docs/", "](")
    depth = len(PurePosixPath(src_uri).parts) - 1
    beside = "|".join(sorted({PurePosixPath(pattern).parts[0] for pattern in BESIDE_DOCS}))
    out, here = "../" * (depth + 1), "../" * depth
    return re.sub(rf"\]\({re.escape(out)}(?=({beside}))", f"]({here}", markdown)


def summarize(markdown: str) -> str:
    r"""Return what a page begins with, as plain text: its first sentence, with the second if the first is short.

    Example:
        >>> summarize("# Steer\n\nAdd a multiple of a *persona vector* to the residual stream, by `pl.steer`. More.")
        'Add a multiple of a persona vector to the residual stream, by pl.steer.'
    """
    text = re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL)
    for block in map(str.strip, re.split(r"\n\s*\n", text)):
        if block and not re.match(r"[#|!<:]|```|---|- ", block):
            plain = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", " ".join(block.split()))
            sentences = re.split(r"(?<=[.?])\s", re.sub(r"[*`]", "", plain).rstrip(":"))
            return " ".join(sentences[: 2 if len(sentences[0]) < 50 else 1])
    return ""


# Reference --------------------------------------------------------------------------------------------------------


def render_names() -> str:
    """Return tables of the names of ``persona_lens`` and of its rooms: links to the reference, and first lines."""
    package = griffe.load("persona_lens", search_paths=[str(ROOT)])
    rows: dict[str, list[str]] = {"name": [], "room": []}
    for name in filter(lambda one: not one.startswith("_"), map(str, package.exports or ())):
        # A room that is loaded late is imported nowhere, and is a member all the same.
        found = package[name].final_target if package[name].is_alias else package[name]
        said = found.docstring.value.partition("\n")[0] if found.docstring else ""
        said = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", said).replace("``", "`").replace("|", "\\|")
        rows["room" if found.is_module else "name"].append(f"| [`pl.{name}`][{found.path}] | {said} |")
    return "\n\n".join("\n".join([f"| {kind} | |", "|---|---|", *found]) for kind, found in rows.items())


class PlainDocstrings(griffe.Extension):
    """Docstrings in this project's form, as the site's Markdown: roles become links, formulas MathML."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite one docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r"^(\s*)Example:", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        text = re.sub(r"^\.\. math::((?:.*\n)(?:[ \t]+\S.*\n)*)", render_formula, text, flags=re.MULTILINE)
        text = re.sub(r":math:`([^`]*)`", lambda match: convert(match[1]), text)
        obj.docstring.value = re.sub(r":\w+:`~?([^`]*)`", lambda match: link(obj, match[1]), text)


def render_formula(found: re.Match[str]) -> str:
    """Return a formula as MathML, which browsers show without a script."""
    return f"<div>{convert(' '.join(found[1].split()), display='block')}</div>\n"


def link(obj: griffe.Object, name: str) -> str:
    """Return a link to a name in the scope of an object, or the name as code where there is nothing to link to."""
    path = name
    if not name.startswith("persona_lens."):
        try:
            path = obj.resolve(name)
        except (griffe.NameResolutionError, KeyError):
            return f"`{name}`"
    return f'<autoref identifier="{path}" optional>`{name}`</autoref>'


# llms.txt ---------------------------------------------------------------------------------------------------------

_nav: list[Navigation] = []


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let pictures load when they come into view: the gallery has forty."""
    return html.replace("<img ", '<img loading="lazy" ')


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Put a page of our own, such as a watched conversation, where another asks for it; after search has read it."""
    folder = Path(config.docs_dir, page.file.src_uri).parent
    return PAGE_MARK.sub(lambda found: (folder / found[1]).read_text(encoding="utf-8").partition("\n")[2], output)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> None:
    """Remember the pages for llms.txt."""
    _nav[:] = [nav]


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt, in the form of llmstxt.org: every page with its first sentence."""
    lines = [f"# {config.site_name}", "", f"> {' '.join(str(config.site_description).split())}", ""]
    alone = [item for item in _nav[0].items if isinstance(item, Page)]
    lines += [*map(render_link, alone), ""] if alone else []
    for item in _nav[0].items:
        if isinstance(item, Section):
            lines += [f"## {item.title}", "", *map(render_link, list_pages(item)), ""]
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def list_pages(section: Section) -> list[Page]:
    """Return the pages of a section and its sections."""
    pages: list[Page] = []
    for child in section.children:
        pages += list_pages(child) if isinstance(child, Section) else [child] if isinstance(child, Page) else []
    return pages


def render_link(page: Page) -> str:
    """Return a page's line."""
    said = page.meta.get("description", "")
    return f"- [{page.title}]({page.url})" + (f": {said}" if said else "")

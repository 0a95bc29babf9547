"""How Sphinx builds the site; `docs.site` puts the pages together that it reads."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "lvmigrate"
version = release = version_of("lvmigrate")
project_copyright = ""
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
# What is shown is what is typed: -- is no dash, and text in a block without a language is no Python.
smartquotes = False
highlight_language = "none"

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

# The docstrings name things in single backticks.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"lvmigrate {release}"
html_static_path = ["theme"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
# No icon is fetched, and none is asked for.
html_favicon = "theme/icon.svg"
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style = "friendly"
pygments_dark_style = "native"

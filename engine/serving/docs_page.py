"""The description of the HTTP interface as a page: made from its OpenAPI, with no script and nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

METHODS = ("get", "post")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { border-top: 1px solid #ccc; padding-top: 1rem; } h2 code { font-size: 1.1rem; }
pre, code { font-family: ui-monospace, monospace; background: #f3f3f3; } pre { padding: .7rem; white-space: pre-wrap; }
table { border-collapse: collapse; margin: .8rem 0; } 
td, th { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } pre, code { background: #2a2a2a; } }
"""


def docs_page(openapi: Mapping[str, Any]) -> str:
    """HTML that shows every operation of `openapi`: what it takes, what it answers, and an example for curl."""
    info = openapi["info"]
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}",
        'For programs, the same is in <a href="openapi.json">openapi.json</a>.</p>',
    ]
    if openapi.get("components", {}).get("securitySchemes"):
        parts.append("<p>Requests need the header <code>Authorization: Bearer TOKEN</code>.</p>")
    for path, operations in openapi["paths"].items():
        for method in METHODS:
            if method in operations:
                parts += _operation(openapi, path, method, operations[method])
    parts.append("</body></html>")
    return "\n".join(parts)


def _operation(openapi: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    rows = [
        (f"{item['name']} in the {item['in']}", _type(item["schema"]), item.get("description", ""))
        for item in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    question = _resolved(openapi, body)
    rows += [
        (f"{name} in the body", _type(_resolved(openapi, field)), field.get("description", ""))
        for name, field in question.get("properties", {}).items()
    ]
    if rows:
        yield _table(("takes", "type", ""), rows)
    answers = [
        (code, _answer_type(answer), answer.get("description", "")) for code, answer in operation["responses"].items()
    ]
    yield _table(("answers", "type", ""), answers)
    yield f"<pre>{escape(_example(path, method, question))}</pre>"
    if name := _answer_type(operation["responses"]["200"]):
        answer = openapi["components"]["schemas"][name]
        yield f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(answer, indent=1))}</pre></details>"


def _resolved(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema, or the one that it refers to."""
    reference = schema.get("$ref", "")
    return openapi["components"]["schemas"][reference.rpartition("/")[2]] if reference else schema


def _type(schema: Mapping[str, Any]) -> str:
    """A type with its bounds and default, in words."""
    if choices := schema.get("oneOf") or schema.get("anyOf"):
        return " or ".join(_type(choice) for choice in choices)
    words = schema.get("type", schema.get("$ref", "").rpartition("/")[2])
    if schema.get("items"):
        words += f" of {_type(schema['items'])}"
    names = {"minimum": "from", "maximum": "to", "maxLength": "characters up to", "maxItems": "up to"}
    bounds = [f"{word} {schema[key]:g}" for key, word in names.items() if key in schema]
    if "default" in schema:
        bounds.append(f"default {json.dumps(schema['default'])}")
    return f"{words} ({', '.join(bounds)})" if bounds else words


def _answer_type(answer: Mapping[str, Any]) -> str:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return schema.get("$ref", "").rpartition("/")[2]


def _example(path: str, method: str, question: Mapping[str, Any]) -> str:
    url = "localhost:8000" + path.replace("{id}", "0")
    if method == "get":
        return f"curl {url}"
    examples = {name: field["examples"][0] for name, field in question["properties"].items() if "examples" in field}
    return f"curl {url} -H 'content-type: application/json' -d '{json.dumps(examples)}'"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [
        "<tr>" + "".join(f"<{cell}>{escape(str(value))}</{cell}>" for value in row) + "</tr>"
        for cell, row in [("th", head), *(("td", row) for row in rows)]
    ]
    return "<table>" + "".join(lines) + "</table>"

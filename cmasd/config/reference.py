"""`configs/reference.yaml`, written from the configuration tree: every key, its default, its comment."""

import ast
import dataclasses
import inspect
import json

from cmasd.config import tree


def field_docs(section: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef), "a dataclass's source is one class"
    docs, name = {}, ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            docs[name] = " ".join(str(node.value.value).split())
    return docs


def reference_yaml() -> str:
    """The text of `configs/reference.yaml`."""
    lines = ["# Every key with its default. Copy what you change; leave the rest out."]
    for section in dataclasses.fields(tree.Config):
        defaults = getattr(tree.Config(), section.name)
        lines += ["", f"# {' '.join((inspect.getdoc(type(defaults)) or '').split())}", f"{section.name}:"]
        docs = field_docs(type(defaults))
        for field in dataclasses.fields(defaults):
            value = getattr(defaults, field.name)
            required = " Required." if value == "" else ""
            lines.append(f"  # {docs[field.name]}{required}")
            lines.append(f"  {field.name}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"

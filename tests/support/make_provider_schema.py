"""Remakes provider_schema.json: names and types of the arguments that deploy/terraform uses.

    pip download --no-deps cdktf-cdktf-provider-google==16.12.0 cdktf-cdktf-provider-time==11.0.1
    python tests/support/make_provider_schema.py *.whl > tests/support/provider_schema.json

The packages (49 MB) are bindings of Terraform's providers, and their documentation names the
provider's version. Only the few resources that deploy/terraform uses are kept. The format is that
of `terraform providers schema -json`. Where the providers themselves can be installed, that command
prints the same content, and limits of lists as well.
"""

import io
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

TERRAFORM = Path(__file__).resolve().parents[2] / "deploy" / "terraform"
TYPES = {"string": "string", "number": "number", "boolean": "bool"}


def bindings(wheel: str) -> dict[str, Any]:
    """Returns the package's own description of its classes, by name."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".jsii.tgz")]
        packed = archive.read(name)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        file = archive.extractfile("package/.jsii")
        assert file
        types: dict[str, Any] = json.load(file)["types"]
    return types


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f"_{found[1].lower()}", name)


def terraform_name(argument: dict[str, Any]) -> str:
    """Returns the name that the documentation links to; only `id` has no link."""
    match = re.search(r"#(\w+) ", " ".join(argument["docs"].values()))
    return match[1] if match else snake_case(argument["name"])


def own_type(kind: dict[str, Any]) -> dict[str, Any]:
    """Returns a type without the alternative that the bindings add to every type."""
    if "union" in kind:
        (kind,) = [
            each for each in kind["union"]["types"] if each.get("fqn") != "cdktf.IResolvable"
        ]
    return kind


def block(types: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the arguments and nested blocks of an interface."""
    attributes, nested = {}, {}
    for argument in types[name].get("properties", ()):
        kind, label = own_type(argument["type"]), terraform_name(argument)
        if label == "alias" or label.endswith("_custom_endpoint"):
            continue
        is_list = kind.get("collection", {}).get("kind") == "array"
        element = own_type(kind["collection"]["elementtype"]) if "collection" in kind else kind
        need = {"optional" if argument.get("optional") else "required": True}
        if "fqn" in element:
            nested[label] = {
                "nesting_mode": "single" if label == "timeouts" else "list",
                "block": block(types, element["fqn"]),
                **({} if argument.get("optional") else {"min_items": 1}),
                **({} if is_list or label == "timeouts" else {"max_items": 1}),
            }
        else:
            type_ = TYPES[element["primitive"]]
            if "collection" in kind:
                type_ = ["list" if is_list else "map", type_]
            computed = {"computed": True} if label == "id" and "optional" in need else {}
            attributes[label] = {"type": type_, **need, **computed}
    return {"attributes": attributes, "block_types": nested}


def resource(types: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a resource: its arguments, and the attributes that the provider fills in."""
    (type_name,) = [
        key
        for key, each in types.items()
        if each.get("docs", {}).get("summary", "").startswith("Represents a ")
        and each["docs"]["summary"].endswith(f"/{name.partition('_')[2]} {name}}}.")
        and "/resources/" in each["docs"]["summary"]
    ]
    schema = block(types, f"{type_name}Config")
    arguments = {each["name"] for each in types[f"{type_name}Config"]["properties"]}
    for each in types[type_name]["properties"]:
        filled_in = each.get("immutable") and not each.get("static")
        if filled_in and "primitive" in each["type"] and not each["name"].endswith("Input"):
            assert each["name"] not in arguments
            type_ = TYPES[each["type"]["primitive"]]
            schema["attributes"][snake_case(each["name"])] = {"type": type_, "computed": True}
    return {"version": 0, "block": schema}


def flat(found: re.Match[str]) -> str:
    return "{" + " ".join(found[1].split()) + "}"


def main() -> None:
    code = "\n".join(path.read_text() for path in TERRAFORM.glob("*.tf"))
    used = sorted(set(re.findall(r'^resource "(\w+)"', code, flags=re.MULTILINE)))
    versions, schemas = {}, {}
    for wheel in sys.argv[1:]:
        types = bindings(wheel)
        (config,) = [key for key in types if re.search(r"\.provider\.\w+ProviderConfig$", key)]
        match = re.search(r"providers/(\w+/(\w+))/([\d.]+)/docs", json.dumps(types[config]))
        assert match
        address, prefix, versions[address] = match.groups()
        schemas[f"registry.terraform.io/{address}"] = {
            "provider": {"version": 0, "block": block(types, config)},
            "resource_schemas": {
                name: resource(types, name) for name in used if name.startswith(f"{prefix}_")
            },
        }
    document = {"versions": versions, "provider_schemas": schemas}
    # Each name has its own line, but its few properties share one.
    text = json.dumps(document, indent=1, sort_keys=True)
    print(re.sub(r"\{\s+([^{}\n]*(?:\n[^{}\n]*){0,2})\n\s+\}", flat, text))


if __name__ == "__main__":
    main()

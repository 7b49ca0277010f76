"""Tables: every keyword of JSON Schema, OpenAPI and its usual exporters, and what becomes of it."""

from __future__ import annotations

__all__ = [
    "ANNOTATIONS",
    "DIALECTS",
    "ENFORCED",
    "FORMATS",
    "INTEGER_FORMATS",
    "NEEDS_PATTERN",
    "NUMBER_FORMATS",
    "PATTERNS_OF_FORMATS",
    "REFUSED",
    "TYPES",
    "VACUOUS_FORMATS",
]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

# Each has a rule in rules.py.
ENFORCED = {
    *("type", "const", "enum", "allOf", "anyOf", "oneOf", "not", "$ref", "nullable"),
    *("properties", "patternProperties", "additionalProperties", "required", "propertyNames"),
    *("minProperties", "maxProperties", "unevaluatedProperties"),
    *("items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems", "uniqueItems"),
    *("minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("contains", "minContains", "maxContains"),
}

# Words for people and for other programs: no answer is right or wrong by them.
ANNOTATIONS = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$defs", "definitions"),
    *("discriminator", "xml", "externalDocs"),  # OpenAPI
    # Editors and exporters of TypeScript.
    *("markdownDescription", "enumDescriptions", "markdownEnumDescriptions", "enumNames", "tsEnumNames"),
    *("propertyOrder", "defaultProperties", "errorMessage"),
}

# Keyword → why, and what to do.
REFUSED = {
    **dict.fromkeys(("if", "then", "else"), "conditions are not enforced; write the cases as anyOf"),
    "dependentRequired": "it is not enforced; write the cases as anyOf",
    "dependentSchemas": "it is not enforced; write the cases as anyOf",
    "dependencies": "it is not enforced; write the cases as anyOf",
    "contentSchema": "what lies inside a string is not enforced; write an object instead",
    **dict.fromkeys(("$dynamicRef", "$recursiveRef", "$recursiveAnchor"), "it is not followed; use $ref"),
    "$vocabulary": "only the standard vocabularies are known; leave it out",
    "x-guidance": "how answers are enforced is not for a schema to say; leave it out",
}

DIALECTS = {
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
    "http://json-schema.org/schema",
    # OpenAPI 3.1's, which adds annotations only.
    "https://spec.openapis.org/oas/3.1/dialect/base",
}

# Formats of strings that the engine has a grammar for.
FORMATS = {"email", "hostname", "ipv4", "ipv6", "uuid", "uri", "duration"}

_DAYS = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|[1-9][0-9](?:0[48]|[2468][048]|[13579][26])-02-29|(?:[2468][048]|1[26]|[3579][26])00-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_HEX4 = "[0-9a-f]{4}"

# Formats that are written here: as strict as the strictest reader (no 29 February in common years, no leap
# seconds), so that any of them takes the answer.
PATTERNS_OF_FORMATS = {
    "date": f"^{_DAYS}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DAYS}T{_TIME}$",
    "byte": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "base64": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "base64url": "^(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?$",
    "base16": "^(?:[0-9A-F]{2})*$",
    "json-pointer": "^(?:/(?:[^~/]|~[01])*)*$",
    **{
        f"uuid{version}": f"^[0-9a-f]{{8}}-{_HEX4}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
        for version in (1, 3, 4, 5, 6, 7, 8)
    },
}

VACUOUS_FORMATS = {"password", "binary", "path", "textarea", "string"}  # any text is one

# Formats that validators' own exporters always write beside the pattern that says what they mean.
NEEDS_PATTERN = {
    *("cuid", "cuid2", "ulid", "xid", "ksuid", "nanoid", "emoji", "e164", "jwt", "cidrv4", "cidrv6"),
    *("guid", "uppercase", "lowercase", "regex", "hex", "mac", "iri", "phone", "slug"),
}

_SAFE = 2**53 - 1
INTEGER_FORMATS: dict[str, tuple[int, int]] = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-_SAFE, _SAFE),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, _SAFE),
    "uint": (0, _SAFE),
    "int": (-_SAFE, _SAFE),
}
NUMBER_FORMATS = {"float", "double", "decimal"}  # any number is one

/** From the JSON Schema of a params class to the fields of a form. */

export interface JsonSchema {
  type?: string | string[];
  title?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  const?: unknown;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  minLength?: number;
  maxLength?: number;
  properties?: Record<string, JsonSchema>;
  required?: string[];
  additionalProperties?: unknown;
  format?: string;
  items?: JsonSchema;
  anyOf?: JsonSchema[];
  $ref?: string;
  $defs?: Record<string, JsonSchema>;
}

/** `settings` are many values by name of which few are set. */
export type Kind = "integer" | "number" | "boolean" | "choice" | "text" | "strings" | "object" | "settings" | "json";

/** Something that a text may name: what is written, what it stands for, and what a person is told of it. */
export interface Suggestion {
  text: string;
  value: string;
  detail: string;
}

/** One field. `key` is its path below the params: `lora.rank`. */
export interface Field {
  key: string;
  name: string;
  kind: Kind;
  description: string;
  /** What the server takes where the field is left out. */
  fallback: unknown;
  required: boolean;
  /** May be null, which an object shows as switched off and a value as empty. */
  nullable: boolean;
  choices: unknown[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  maxLength?: number;
  /** Of strings: whether one of them alone is a list too. */
  many: boolean;
  /** What a text names: `reward-model`. */
  format: string;
  /** What there is of that. Something else may be written too. */
  suggestions: Suggestion[];
  children: Field[];
}

/** A schema's fields; those named in `first` go before the others, which are sorted (a Struct keeps no order). */
export function fieldsOf(schema: JsonSchema, first: readonly string[] = [], below = "", root: JsonSchema = schema): Field[] {
  const place = (name: string): number => (first.includes(name) ? first.indexOf(name) : first.length);
  return Object.entries(schema.properties ?? {})
    .sort(([a], [b]) => place(a) - place(b) || a.localeCompare(b))
    .map(([name, property]) => {
      const key = below ? `${below}.${name}` : name;
      return fieldOf(key, name, property, (schema.required ?? []).includes(name), root);
    });
}

function fieldOf(key: string, name: string, property: JsonSchema, required: boolean, root: JsonSchema): Field {
  const outer = resolve(property, root);
  const options = (outer.anyOf ?? []).map((option) => resolve(option, root));
  const real = options.filter((option) => option.type !== "null");
  // `X | null` is X that may be left empty; any other union has no field of its own but one of those below.
  const inner = real.length === 1 ? { ...(real[0] as JsonSchema), ...described(outer) } : outer;
  const kind = kindOf(inner, real);
  return {
    key,
    name,
    kind,
    required,
    description: outer.description ?? inner.description ?? "",
    fallback: outer.default,
    nullable: real.length < options.length,
    choices: inner.enum ?? [],
    minimum: inner.minimum,
    maximum: inner.maximum,
    exclusiveMinimum: inner.exclusiveMinimum,
    exclusiveMaximum: inner.exclusiveMaximum,
    maxLength: inner.maxLength,
    many: isStrings(inner),
    format: outer.format ?? inner.format ?? "",
    suggestions: [],
    children: kind === "object" || kind === "settings" ? fieldsOf(inner, [], key, root) : [],
  };
}

function described(schema: JsonSchema): JsonSchema {
  return schema.description === undefined ? {} : { description: schema.description };
}

function resolve(schema: JsonSchema, root: JsonSchema): JsonSchema {
  const name = schema.$ref?.replace("#/$defs/", "");
  const found = name === undefined ? undefined : root.$defs?.[name];
  return found === undefined ? schema : { ...found, ...described(schema), ...(schema.default !== undefined && { default: schema.default }) };
}

function kindOf(schema: JsonSchema, union: readonly JsonSchema[]): Kind {
  if (schema.enum !== undefined) return "choice";
  if (isStrings(schema) || (union.length === 2 && union.some(isStrings) && union.some((one) => one.type === "string"))) return "strings";
  switch (schema.type) {
    case "integer":
    case "number":
    case "boolean":
      return schema.type;
    case "string":
      return "text";
    case "object":
      if (schema.properties === undefined) return "json";
      return schema.additionalProperties ? "settings" : "object";
    default:
      return "json";
  }
}

function isStrings(schema: JsonSchema): boolean {
  return schema.type === "array" && schema.items?.type === "string";
}

/** Every field for which `change` has another, at any depth. */
export function mapFields(fields: readonly Field[], change: (field: Field) => Field): Field[] {
  return fields.map((field) => change({ ...field, children: mapFields(field.children, change) }));
}

/** Put another field in the place of the one with its key, at any depth. */
export function replaceField(fields: readonly Field[], key: string, change: (field: Field) => Field): Field[] {
  return fields.map((field) => {
    if (field.key === key) return change(field);
    return key.startsWith(`${field.key}.`) ? { ...field, children: replaceField(field.children, key, change) } : field;
  });
}

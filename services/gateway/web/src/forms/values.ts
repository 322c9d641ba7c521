/** What a visitor has written into a form's fields, and the params it means. */

import { isRecord } from "../api/problem";
import type { Field } from "./schema";

/** By key: text as typed, a boolean, or for an object that may be null whether it is there. A key that is absent has
 * not been touched. */
export type Values = Record<string, string | boolean>;

/** A field that can't be read, by key. */
export type Mistakes = Record<string, string>;

/** What a field shows before it is touched. */
export function shown(field: Field): string {
  const value = field.fallback;
  if (value === undefined || value === null) return "";
  if (Array.isArray(value) && field.kind === "strings") return value.join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** The params of a job as a form of these fields holds them; what has no field is left out. */
export function valuesOf(fields: readonly Field[], params: Record<string, unknown>): Values {
  const found: Values = {};
  for (const field of fields) {
    const value = params[field.name];
    if (value === undefined) continue;
    if (field.kind === "object") Object.assign(found, field.nullable && { [field.key]: isRecord(value) }, isRecord(value) && valuesOf(field.children, value));
    else if (field.kind === "settings") Object.assign(found, isRecord(value) && valuesOf(field.children, flat(value)));
    else if (typeof value === "boolean") found[field.key] = value;
    else found[field.key] = shown({ ...field, fallback: value });
  }
  return found;
}

/** By dotted name, as settings are listed; they may be written as objects in each other. */
function flat(settings: Record<string, unknown>, below = ""): Record<string, unknown> {
  return Object.assign({}, ...Object.entries(settings).map(([name, value]) => (isRecord(value) ? flat(value, `${below}${name}.`) : { [`${below}${name}`]: value }))) as Record<string, unknown>;
}

/** Whether an object that may be null is switched on. */
export function isOn(field: Field, values: Values): boolean {
  const value = values[field.key];
  return typeof value === "boolean" ? value : !field.nullable || isRecord(field.fallback);
}

/** The params: only what differs from what the server takes anyway. Words for a mistake are keys of the translation; what
 * cannot be read stands in the params as it was written, so that the server can judge all the rest. */
export function read(fields: readonly Field[], values: Values): { params: Record<string, unknown>; mistakes: Mistakes } {
  const mistakes: Mistakes = {};
  return { params: readObject(fields, values, mistakes), mistakes };
}

function readObject(fields: readonly Field[], values: Values, mistakes: Mistakes): Record<string, unknown> {
  const found: Record<string, unknown> = {};
  for (const field of fields) {
    const value = readField(field, values, mistakes);
    if (value !== undefined) found[field.name] = value;
  }
  return found;
}

function readField(field: Field, values: Values, mistakes: Mistakes): unknown {
  if (field.kind === "object") return readNested(field, values, mistakes);
  return field.kind === "settings" ? readSettings(field, values, mistakes) : readOne(field, values, mistakes);
}

/** The settings that have been taken, in their order. */
export function chosen(field: Field, values: Values): Field[] {
  return field.children.filter((child) => values[child.key] !== undefined);
}

/** A setting that was taken is sent also where it is the default: somebody wanted it so. */
function readSettings(field: Field, values: Values, mistakes: Mistakes): unknown {
  const found: Record<string, unknown> = {};
  for (const child of chosen(field, values)) {
    const given = values[child.key] ?? "";
    const value = typeof given === "boolean" ? given : readText({ ...child, required: !child.nullable }, given.trim(), mistakes);
    if (value !== undefined) found[child.name] = value;
  }
  return Object.keys(found).length > 0 ? found : undefined;
}

function readNested(field: Field, values: Values, mistakes: Mistakes): unknown {
  if (!isOn(field, values)) return isRecord(field.fallback) ? null : undefined;
  const inside = readObject(field.children, values, mistakes);
  const switchedOn = field.nullable && !isRecord(field.fallback);
  return switchedOn || Object.keys(inside).length > 0 ? inside : undefined;
}

function readOne(field: Field, values: Values, mistakes: Mistakes): unknown {
  const given = values[field.key];
  if (given === undefined) {
    if (field.required) mistakes[field.key] = "form.required";
    return undefined;
  }
  const read = typeof given === "boolean" ? given : readText(field, given.trim(), mistakes);
  return JSON.stringify(read) === JSON.stringify(field.fallback) ? undefined : read;
}

function readText(field: Field, text: string, mistakes: Mistakes): unknown {
  if (text === "") {
    if (field.required) mistakes[field.key] = "form.required";
    return field.nullable ? null : field.kind === "text" && !field.required ? "" : undefined;
  }
  switch (field.kind) {
    case "choice":
      return field.choices.find((choice) => String(choice) === text) ?? text;
    case "integer":
    case "number":
      return readNumber(field, text, mistakes);
    case "strings":
      return field.many || text.includes(",") ? text.split(",").map((part) => part.trim()).filter(Boolean) : text;
    case "json":
      try {
        return JSON.parse(text) as unknown;
      } catch {
        mistakes[field.key] = "form.notJson";
        return text;
      }
    default:
      return field.suggestions.find((one) => one.text === text)?.value ?? text;
  }
}

function readNumber(field: Field, text: string, mistakes: Mistakes): number | string {
  const value = Number(text);
  if (!Number.isFinite(value)) mistakes[field.key] = "form.notNumber";
  else if (field.kind === "integer" && !Number.isInteger(value)) mistakes[field.key] = "form.notInteger";
  return field.key in mistakes ? text : value;
}

/** `1 … 64`, `> 0, ≤ 1`: what a number may be. */
export function limits(field: Field): string {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = field;
  if (minimum !== undefined && maximum !== undefined) return `${plain(minimum)} … ${plain(maximum)}`;
  const parts: string[] = [];
  if (minimum !== undefined) parts.push(`≥ ${plain(minimum)}`);
  if (exclusiveMinimum !== undefined) parts.push(`> ${plain(exclusiveMinimum)}`);
  if (maximum !== undefined) parts.push(`≤ ${plain(maximum)}`);
  if (exclusiveMaximum !== undefined) parts.push(`< ${plain(exclusiveMaximum)}`);
  return parts.join(", ");
}

function plain(value: number): string {
  return value.toLocaleString("en-US", { maximumFractionDigits: 12 });
}

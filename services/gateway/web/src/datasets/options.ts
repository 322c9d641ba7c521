/** What may be asked of an upload beside its file: as typed, and as the contract has it. */

import type { Violation } from "../api/problem";
import type { UploadInput } from "../api/types";
import { sortViolations, type Sorted } from "../forms/violations";

/** A key of the file and the key of the format that it is read as. */
export interface Pair {
  key: string;
  name: string;
}

export interface Options {
  mapping: Pair[];
  /** A number of rows or a share of them, `5%`. */
  skip: string;
  splitName: string;
  splitShare: string;
  splitSeed: string;
}

export type OptionFields = Pick<UploadInput, "fieldMapping" | "maxInvalidRowCount" | "maxInvalidRowShare" | "split">;

const SPLIT_NAME = "validation";
const MAPPING = "field_mapping";
/** Longer keys are cut in what the mesh says of them. */
const SHOWN_KEY = 80;
const ORDER = ["messages", "prompt", "completion", "answer", "chosen", "rejected"];
const FIELDS = new Set(["file_name", "size_bytes", "dataset_id", "format", MAPPING, "skip_invalid", "split.name", "split.share", "split.seed"]);
const ALIASES = { max_invalid_row_count: "skip_invalid", max_invalid_row_share: "skip_invalid", split: "split.share" };

export function noOptions(): Options {
  return { mapping: [], skip: "", splitName: SPLIT_NAME, splitShare: "", splitSeed: "" };
}

/** Whether anything was written. */
export function isAsked(options: Options): boolean {
  return options.mapping.length > 0 || options.skip.trim() !== "" || asksForSplit(options);
}

/** The fields of an upload. Mistakes are keys of the translation, by field. */
export function readOptions(options: Options): { fields: OptionFields; mistakes: Record<string, string> } {
  const mistakes: Record<string, string> = {};
  const fields = { ...readMapping(options.mapping, mistakes), ...readSkip(options.skip.trim(), mistakes), ...readSplit(options, mistakes) };
  return { fields, mistakes };
}

/** The field of the form that a pair is. */
export function pairField(index: number): string {
  return `${MAPPING}.${index}`;
}

/** A mapping in the order of a row: the question before its answer. */
export function pairsOf(mapping: Readonly<Record<string, string>>): Pair[] {
  const place = (pair: Pair): number => (ORDER.includes(pair.name) ? ORDER.indexOf(pair.name) : ORDER.length);
  return Object.entries(mapping).map(([key, name]) => ({ key, name })).sort((a, b) => place(a) - place(b));
}

/** How many wrong rows to leave out so that the others are taken; 0 where none or most are wrong, since then something
 * else is amiss. */
export function rowsToSkip(rowCount: string, invalidRowCount: string): number {
  const wrong = Number(invalidRowCount);
  return wrong * 2 <= Number(rowCount) ? wrong : 0;
}

/** What the mesh says about an upload and its dataset, sorted to the fields of the form; what it says about one key of
 * the mapping goes to that pair. */
export function sortUpload(violations: readonly Violation[], mapping: readonly Pair[]): Sorted {
  const byPair: Record<string, string[]> = {};
  const others: Violation[] = [];
  for (const violation of violations) {
    const field = violation.field.replace(/^(upload|dataset)\./, "");
    const index = mapping.findIndex((pair) => [pair.key.trim(), pair.key.trim().slice(0, SHOWN_KEY)].some((key) => field === `${MAPPING}.${key}`));
    if (index < 0) others.push({ ...violation, field });
    else (byPair[pairField(index)] ??= []).push(violation.description);
  }
  const { byField, ofForm } = sortViolations(others, FIELDS, "upload", ALIASES);
  return { byField: { ...byField, ...byPair }, ofForm };
}

function readMapping(pairs: readonly Pair[], mistakes: Record<string, string>): OptionFields {
  const found = new Map<string, string>();
  pairs.forEach((pair, index) => {
    const [key, name] = [pair.key.trim(), pair.name.trim()];
    if (key === "" && name === "") return;
    if (key === "" || name === "") mistakes[pairField(index)] = "upload.mistakes.pair";
    else if (found.has(key)) mistakes[pairField(index)] = "upload.mistakes.twice";
    found.set(key, name);
  });
  return found.size > 0 ? { fieldMapping: Object.fromEntries(found) } : {};
}

function readSkip(text: string, mistakes: Record<string, string>): OptionFields {
  if (text === "") return {};
  const share = text.endsWith("%") ? shareOf(text) : null;
  if (share !== null && share > 0 && share < 1) return { maxInvalidRowShare: share };
  if (/^0*[1-9]\d*$/.test(text)) return { maxInvalidRowCount: text };
  mistakes["skip_invalid"] = "upload.mistakes.skip";
  return {};
}

function readSplit(options: Options, mistakes: Record<string, string>): OptionFields {
  if (!asksForSplit(options)) return {};
  const [name, share, seed] = [options.splitName.trim(), shareOf(options.splitShare), options.splitSeed.trim()];
  if (name === "") mistakes["split.name"] = "form.required";
  if (share === null) mistakes["split.share"] = options.splitShare.trim() === "" ? "form.required" : "upload.mistakes.share";
  if (!/^-?\d*$/.test(seed) || seed === "-") mistakes["split.seed"] = "form.notInteger";
  return { split: { name, share: share ?? 0, seed: seed || "0" } };
}

/** A name alone is what the form begins with. */
function asksForSplit(options: Options): boolean {
  return options.splitShare.trim() !== "" || options.splitSeed.trim() !== "" || ![SPLIT_NAME, ""].includes(options.splitName.trim());
}

/** `0.05` or `5%`; null where it is neither. */
function shareOf(text: string): number | null {
  const found = /^(\d+\.?\d*|\.\d+)\s*(%?)$/.exec(text.trim());
  return found ? Number(found[1]) / (found[2] ? 100 : 1) : null;
}

import type { Violation } from "../api/problem";

/** The violations of an answer, sorted to the fields of a form. `ofForm` are those that no field takes. */
export interface Sorted {
  byField: Record<string, string[]>;
  ofForm: Violation[];
}

/** `training_job.params.lora.rank` goes to the field `params.lora.rank`; where there is none, to the nearest one above
 * it, with the rest of the path before it (`0.params.pattern: …` beside `components`), and else to the form.
 *
 * `prefix` is what stands before every field of the message in question, `aliases` name fields that the form calls
 * otherwise.
 */
export function sortViolations(
  violations: readonly Violation[],
  fields: ReadonlySet<string>,
  prefix: string,
  aliases: Readonly<Record<string, string>> = {},
): Sorted {
  const sorted: Sorted = { byField: {}, ofForm: [] };
  for (const violation of violations) {
    const path = snake(violation.field);
    const below = path.startsWith(`${prefix}.`) ? path.slice(prefix.length + 1) : path;
    const place = aliases[below] ?? below;
    const field = nearest(place, fields);
    if (field === undefined) sorted.ofForm.push(violation);
    else (sorted.byField[field] ??= []).push(place === field ? violation.description : `${place.slice(field.length + 1)}: ${violation.description}`);
  }
  return sorted;
}

function nearest(path: string, fields: ReadonlySet<string>): string | undefined {
  for (let place = path; place !== ""; place = place.slice(0, Math.max(0, place.lastIndexOf(".")))) {
    if (fields.has(place)) return place;
  }
  return undefined;
}

/** `trainingJob.baseModel`, as JSON spells it, is `training_job.base_model`, as the contract does. */
function snake(path: string): string {
  return path.replace(/([a-z0-9])([A-Z])/g, "$1_$2").toLowerCase();
}

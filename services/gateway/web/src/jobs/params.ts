import { isRecord } from "../api/problem";
import type { Values } from "../forms/values";

/** Shown before the others are unfolded: what a person sets first, in the order in which it is thought of. */
export const BASIC: readonly string[] = [
  "learning_rate",
  "loss_type",
  "beta",
  "kl_coefficient",
  "steps",
  "epochs",
  "batch_size",
  "prompts_per_step",
  "samples_per_prompt",
  "max_length",
  "max_prompt_length",
  "max_response_length",
  "save_every_steps",
  "lora",
  "reward",
];

/** The params of a job as a form holds them: by path, as text. */
export function flatten(params: Record<string, unknown>, below = ""): Values {
  const found: Values = {};
  for (const [name, value] of Object.entries(params)) {
    const key = below ? `${below}.${name}` : name;
    if (isRecord(value)) Object.assign(found, Object.keys(value).length > 0 ? { [key]: true } : {}, flatten(value, key));
    else if (typeof value === "boolean") found[key] = value;
    else if (value !== null) found[key] = Array.isArray(value) ? value.join(", ") : String(value);
  }
  return found;
}

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

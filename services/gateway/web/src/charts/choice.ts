/** Which metrics are shown before the visitor has chosen. */

const FIRST: readonly RegExp[] = [
  /^reward\/mean$/,
  /^held_out\/mean$/,
  /^train\/loss$/,
  /^validation\/score\/mean$/,
  /^validation\/(loss|accuracy)/,
  /^rewards\/(accuracy|margin)$/,
  /^critic\/explained_variance$/,
  /^actor\/(kl|kl_loss|kl_to_rollout)$/,
  /^actor\/entropy$/,
  /^response\/length\/mean$/,
  /^(train|actor)\/grad(ient)?_norm$/,
  /^(?!verl\/).*loss/,
];
const SHOWN = 8;

/** `headline` is what the job's algorithm names as worth a glance; the usual ones fill up what is left. */
export function usual(metrics: readonly string[], headline: readonly string[] = []): string[] {
  const first = headline.filter((metric) => metrics.includes(metric));
  const ranked = FIRST.flatMap((pattern) => metrics.filter((metric) => pattern.test(metric)));
  const chosen = [...new Set([...first, ...ranked])].slice(0, SHOWN);
  return chosen.length > 0 ? chosen : metrics.slice(0, 4);
}

/** Metrics by what stands before their first slash, both sorted. */
export function grouped(metrics: readonly string[]): [string, string[]][] {
  const groups = new Map<string, string[]>();
  for (const metric of [...metrics].sort()) {
    const group = metric.includes("/") ? metric.slice(0, metric.indexOf("/")) : "";
    groups.set(group, [...(groups.get(group) ?? []), metric]);
  }
  return [...groups].sort(([a], [b]) => a.localeCompare(b));
}

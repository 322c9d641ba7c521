import { shortName } from "../api/names";
import type { TrainingJob } from "../api/types";

/** What a job that waits waits behind: `a, b +3`, so many names at most; empty where it does not wait. */
export function behind(job: Pick<TrainingJob, "queuedBehind">, most = 2): string {
  const place = job.queuedBehind;
  if (!place) return "";
  const running = place.running ?? [];
  const names = [...running, ...(place.ahead ?? [])].slice(0, most);
  const left = running.length + (place.aheadCount ?? 0) - names.length;
  return names.map(shortName).join(", ") + (left > 0 ? ` +${left}` : "");
}

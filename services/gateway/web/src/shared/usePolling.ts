import { onScopeDispose, ref, shallowRef, type Ref, type ShallowRef } from "vue";

import { asProblem, type Problem } from "../api/problem";
import { pauseMs, sleep } from "./backoff";
import { seen } from "./presence";

export interface Polling<T> {
  data: ShallowRef<T | null>;
  problem: ShallowRef<Problem | null>;
  /** No answer came to the last question; what is shown may be old. */
  stale: Ref<boolean>;
  /** Ask now; resolves when the answer is in. */
  refresh: () => Promise<void>;
  stop: () => void;
}

/** Ask every `everyMs` while the window is seen; with pauses that grow while no answer comes. `everyMs` may fall to 0:
 * asked once, and again by `refresh`. An answer that a newer question has overtaken is dropped. */
export function usePolling<T>(ask: () => Promise<T>, everyMs: (last: T | null) => number): Polling<T> {
  const data = shallowRef<T | null>(null);
  const problem = shallowRef<Problem | null>(null);
  const stale = ref(false);
  const controller = new AbortController();
  let asked = 0;
  let failures = 0;

  async function refresh(): Promise<void> {
    const mine = ++asked;
    try {
      const answer = await ask();
      if (mine !== asked || controller.signal.aborted) return;
      data.value = answer;
      problem.value = null;
      stale.value = false;
      failures = 0;
    } catch (error) {
      if (mine !== asked || controller.signal.aborted) return;
      problem.value = asProblem(error);
      stale.value = true;
      failures += 1;
    }
  }

  async function run(): Promise<void> {
    const { signal } = controller;
    while (!signal.aborted) {
      if (seen.value || asked === 0) await refresh();
      const pause = failures > 0 ? Math.max(everyMs(data.value), pauseMs(failures)) : everyMs(data.value);
      if (pause <= 0 && failures === 0) return;
      await sleep(pause, signal);
    }
  }

  void run();
  const stop = (): void => controller.abort();
  onScopeDispose(stop);
  return { data, problem, stale, refresh, stop };
}

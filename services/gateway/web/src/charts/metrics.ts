import { computed, ref, shallowReactive, type Ref } from "vue";

import type { Metrics } from "../api/types";
import { authorization } from "../session/token";
import { follow, type StreamState } from "../shared/follow";
import { seen } from "../shared/presence";
import { Series } from "./series";

/** How often charts are drawn anew, however fast points come. */
const DRAW_MS = 250;

/** Every metric of one job, followed live until `stop`, while `active` holds. */
export interface JobMetrics {
  job: string;
  series: Map<string, Series>;
  /** Rises, a few times a second, when there are new points. */
  version: Ref<number>;
  state: Ref<StreamState>;
  stop: () => void;
}

export function followMetrics(job: string, path: string, active: Ref<boolean>): JobMetrics {
  const series = shallowReactive(new Map<string, Series>());
  const version = ref(0);
  const state = ref<StreamState>("connecting");
  const controller = new AbortController();
  let last = 0;
  let drawing: ReturnType<typeof setTimeout> | undefined;

  function drawSoon(): void {
    drawing ??= setTimeout(() => {
      drawing = undefined;
      version.value += 1;
    }, DRAW_MS);
  }

  function take(message: Metrics): void {
    for (const point of message.points) {
      const ordinal = Number(point.ordinal);
      // A point that came twice is one point.
      if (ordinal <= last) continue;
      last = ordinal;
      let found = series.get(point.metric);
      if (found === undefined) series.set(point.metric, (found = new Series()));
      found.add(Number(point.step), Number(point.value), point.attempt);
    }
    if (message.points.length > 0) drawSoon();
  }

  void follow<Metrics>({
    path,
    headers: authorization,
    signal: controller.signal,
    wanted: computed(() => seen.value && active.value),
    onMessage: take,
    onState: (next) => (state.value = next),
  });
  return {
    job,
    series,
    version,
    state,
    stop: () => {
      controller.abort();
      clearTimeout(drawing);
    },
  };
}

import { onScopeDispose, ref, type Ref } from "vue";

import type { LogLine, Logs } from "../api/types";
import type { StreamState } from "../shared/follow";
import { useStream } from "../shared/useStream";
import { clean } from "./terminal";

/** Older lines than these are let go of: a browser's memory is not the log. */
export const KEPT_LINES = 50_000;
const DRAW_MS = 200;

export interface KeptLine {
  ordinal: number;
  text: string;
  attempt: number;
  time: string;
}

export interface Log {
  lines: KeptLine[];
  /** Rises, a few times a second, when there are new lines. */
  version: Ref<number>;
  dropped: Ref<number>;
  state: Ref<StreamState>;
}

/** A job's lines, followed live while `active` holds. */
export function useLog(path: string, active: Ref<boolean>): Log {
  const lines: KeptLine[] = [];
  const version = ref(0);
  const dropped = ref(0);
  let last = 0;
  let drawing: ReturnType<typeof setTimeout> | undefined;

  function keep(line: LogLine): void {
    const ordinal = Number(line.ordinal);
    if (ordinal <= last) return;
    last = ordinal;
    lines.push({ ordinal, text: clean(line.text), attempt: line.attempt, time: line.observeTime ?? "" });
  }

  const { state } = useStream<Logs>(path, (message) => {
    message.lines.forEach(keep);
    const over = lines.length - KEPT_LINES;
    // A tenth at once: cutting the front off one by one would move all the others each time.
    if (over > KEPT_LINES / 10) {
      lines.splice(0, over);
      dropped.value += over;
    }
    if (message.lines.length > 0) {
      drawing ??= setTimeout(() => {
        drawing = undefined;
        version.value += 1;
      }, DRAW_MS);
    }
  }, active);
  onScopeDispose(() => clearTimeout(drawing));
  return { lines, version, dropped, state };
}

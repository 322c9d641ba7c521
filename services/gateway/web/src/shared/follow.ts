import { watch, type Ref } from "vue";

import { asProblem, isRecord, problemOf, unreachable, type Problem } from "../api/problem";
import { pauseMs, sleep } from "./backoff";
import { seen, whenWanted } from "./presence";
import { SseParser, type ServerEvent } from "./sse";

export type StreamState = "connecting" | "live" | "reconnecting" | "ended" | "failed";

export interface Following<Message> {
  /** With its query, without the cursor. */
  path: string;
  headers: () => Record<string, string>;
  /** Of the last message that was taken; it is asked for what comes after. */
  cursor?: string;
  signal: AbortSignal;
  /** Whether the stream is read just now; by default while the page is seen. It is left and come back to by cursor. */
  wanted?: Ref<boolean>;
  onMessage: (message: Message) => void;
  onState: (state: StreamState, problem: Problem | null) => void;
  fetch?: typeof fetch;
  /** No byte for so long means a dead connection: the gateway sends signs of life. */
  idleMs?: number;
  pause?: (attempt: number) => number;
}

/** Read a stream until it ends regularly, opening it again after its last cursor whenever the connection breaks.
 *
 * Resolves when it has ended, has failed for good (the states tell which) or was aborted. A message is handed over
 * once: its cursor moves with it, in the same turn.
 */
export async function follow<Message>(following: Following<Message>): Promise<void> {
  const { signal, onState, wanted = seen } = following;
  const reader = new Reader(following);
  let failures = 0;
  onState("connecting", null);
  while (!signal.aborted) {
    await whenWanted(wanted, signal);
    if (signal.aborted) return;
    try {
      await reader.read(() => {
        failures = 0;
        onState("live", null);
      });
      if (!signal.aborted) onState("ended", null);
      return;
    } catch (error) {
      if (signal.aborted) return;
      if (!wanted.value) continue;
      const problem = asProblem(error);
      if (!problem.passing) return onState("failed", problem);
      onState("reconnecting", problem);
      await sleep((following.pause ?? pauseMs)(failures++), signal);
    }
  }
}

class Reader<Message> {
  private cursor: string;

  constructor(private readonly following: Following<Message>) {
    this.cursor = following.cursor ?? "";
  }

  /** One connection. Returns after the regular end; throws a Problem otherwise. */
  async read(opened: () => void): Promise<void> {
    const { path, headers, signal, wanted = seen, idleMs = 45_000 } = this.following;
    const connection = new AbortController();
    const abort = (): void => connection.abort();
    signal.addEventListener("abort", abort);
    const leave = watch(wanted, (holds) => !holds && abort());
    let watchdog = setTimeout(abort, idleMs);
    try {
      const answer = await (this.following.fetch ?? fetch)(path, {
        headers: { Accept: "text/event-stream", ...(this.cursor && { "Last-Event-ID": this.cursor }), ...headers() },
        signal: connection.signal,
        cache: "no-store",
      });
      if (!answer.ok) throw problemOf(answer.status, await answer.json().catch(() => null));
      if (answer.body === null) throw unreachable();
      opened();
      const parser = new SseParser();
      const decoder = new TextDecoder();
      const body = answer.body.getReader();
      for (;;) {
        const { done, value } = await body.read();
        // An end that was not announced is a broken connection.
        if (done) throw unreachable();
        clearTimeout(watchdog);
        watchdog = setTimeout(abort, idleMs);
        for (const event of parser.feed(decoder.decode(value, { stream: true }))) {
          if (this.take(event)) return;
        }
      }
    } catch (error) {
      throw connection.signal.aborted ? unreachable() : error;
    } finally {
      leave();
      clearTimeout(watchdog);
      signal.removeEventListener("abort", abort);
      connection.abort();
    }
  }

  /** Whether the stream has ended with this event. */
  private take(event: ServerEvent): boolean {
    if (event.event === "end") return true;
    const document: unknown = event.data === "" ? null : JSON.parse(event.data);
    if (event.event === "error") {
      throw problemOf(isRecord(document) && typeof document["status"] === "number" ? document["status"] : 500, document);
    }
    if (document !== null) this.following.onMessage(document as Message);
    if (event.id !== "") this.cursor = event.id;
    return false;
  }
}

import { ref } from "vue";
import { describe, expect, it } from "vitest";

import { pauseMs } from "./backoff";
import { follow, type StreamState } from "./follow";
import { SseParser } from "./sse";

describe("SseParser", () => {
  it("reads events whatever pieces they come in and however lines end", () => {
    const text = ': beat\r\nid: 7\r\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: end\ndata\n\nid:8\rdata:x\r\r';
    const whole = new SseParser().feed(text);
    expect(whole).toEqual([
      { event: "message", data: '{"a":\n1}', id: "7" },
      { event: "end", data: "", id: "" },
      { event: "message", data: "x", id: "8" },
    ]);
    const byCharacter = new SseParser();
    expect([...text].flatMap((character) => byCharacter.feed(character))).toEqual(whole);
  });

  it("does not take an unfinished event for one", () => {
    expect(new SseParser().feed("data: 1\n")).toEqual([]);
  });
});

interface Asked {
  lastEventId: string | null;
}

/** A server that answers connection number n with the n-th of `answers`: text of a stream, or a status. */
function server(answers: (string | number)[]): { fetch: typeof fetch; asked: Asked[] } {
  const asked: Asked[] = [];
  return {
    asked,
    fetch: async (_, init) => {
      asked.push({ lastEventId: new Headers(init?.headers).get("Last-Event-ID") });
      const answer = answers[asked.length - 1];
      if (answer === undefined) throw new TypeError("no connection");
      if (typeof answer === "number") return new Response(JSON.stringify({ detail: "no", code: "X" }), { status: answer });
      return new Response(answer);
    },
  };
}

async function followed(answers: (string | number)[]): Promise<{ messages: unknown[]; states: StreamState[]; asked: Asked[] }> {
  const { fetch, asked } = server(answers);
  const messages: unknown[] = [];
  const states: StreamState[] = [];
  await follow({
    path: "/v1/x",
    headers: () => ({}),
    signal: new AbortController().signal,
    wanted: ref(true),
    onMessage: (message) => messages.push(message),
    onState: (state) => states.push(state),
    fetch,
    pause: () => 0,
  });
  return { messages, states, asked };
}

const END = "event: end\ndata: {}\n\n";

describe("follow", () => {
  it("resumes after the last cursor when the connection breaks, until the regular end", async () => {
    const found = await followed(["id: 1\ndata: 1\n\nid: 2\ndata: 2\n\nid: 3\ndata: 3", 503, `id: 3\ndata: 3\n\n${END}`]);
    expect(found.messages).toEqual([1, 2, 3]);
    expect(found.asked.map((one) => one.lastEventId)).toEqual([null, "2", "2"]);
    expect(found.states).toEqual(["connecting", "live", "reconnecting", "reconnecting", "live", "ended"]);
  });

  it("keeps its cursor through signs of life", async () => {
    const found = await followed(["id: 5\ndata: 5\n\n: beat\n\n", END]);
    expect(found.asked[1]?.lastEventId).toBe("5");
  });

  it("gives up where another try cannot help", async () => {
    expect((await followed([404])).states).toEqual(["connecting", "failed"]);
    expect((await followed(['event: error\ndata: {"status": 404, "detail": "gone"}\n\n'])).states).toEqual(["connecting", "live", "failed"]);
  });

  it("goes on after an error that passes", async () => {
    const found = await followed(['id: 1\ndata: 1\n\nevent: error\ndata: {"status": 503}\n\n', END]);
    expect(found.states.at(-1)).toBe("ended");
    expect(found.asked[1]?.lastEventId).toBe("1");
  });

  it("does not ask before it is wanted, nor after it is stopped", async () => {
    const { fetch, asked } = server([]);
    const controller = new AbortController();
    const following = follow({ path: "/", headers: () => ({}), signal: controller.signal, wanted: ref(false), onMessage: () => undefined, onState: () => undefined, fetch });
    controller.abort();
    await following;
    expect(asked).toEqual([]);
  });
});

it("waits longer each time, within bounds and spread", () => {
  expect([0, 1, 2, 30].map((attempt) => pauseMs(attempt, () => 1))).toEqual([400, 800, 1600, 10_000]);
  expect(pauseMs(30, () => 0)).toBe(5000);
});

import { expect, it } from "vitest";

import { idOf, pathOf, shortName } from "../api/names";
import { asProblem, problemOf } from "../api/problem";
import { partsOf } from "../datasets/turns";
import { en } from "../i18n/en";
import { zh } from "../i18n/zh";
import { behind } from "../jobs/queue";
import { clean } from "../jobs/terminal";
import { metric, paragraphs, size, took } from "./format";

it("names resources as a person does", () => {
  const version = "projects/p/datasets/d/versions/3";
  const checkpoint = "projects/p/trainingJobs/j/checkpoints/step-9";
  expect([shortName(version), shortName(checkpoint), shortName("projects/p/models/m")]).toEqual(["d:3", "j/step-9", "m"]);
  expect([pathOf(version), pathOf(checkpoint), pathOf("projects/p/models/m")]).toEqual(["/datasets/d/versions/3", "/jobs/j/checkpoints", "/models/m"]);
  expect(idOf(version)).toBe("3");
});

it("says behind what a job waits", () => {
  const running = ["projects/p/trainingJobs/a", "projects/p/models/m"];
  expect(behind({})).toBe("");
  expect(behind({ queuedBehind: { running: [], ahead: [], aheadCount: 0 } })).toBe("");
  expect(behind({ queuedBehind: { running, ahead: ["projects/p/trainingJobs/b"], aheadCount: 30 } })).toBe("a, m +30");
  expect(behind({ queuedBehind: { running, ahead: ["projects/p/trainingJobs/b"], aheadCount: 1 } }, 9)).toBe("a, m, b");
});

it("reads problem details, whatever came instead", () => {
  const problem = problemOf(400, { detail: "wrong", code: "INVALID_ARGUMENT", violations: [{ field: "a", description: "b" }], request_id: "r" });
  expect([problem.message, problem.violations, problem.requestId, problem.passing]).toEqual(["wrong", [{ field: "a", description: "b" }], "r", false]);
  expect(problemOf(502, null).passing).toBe(true);
  expect(asProblem(new TypeError("fetch failed")).reason).toBe("UNREACHABLE");
});

it("writes numbers, sizes and times", () => {
  expect([metric(NaN), metric(0), metric(1 / 3), metric(1.5e-9)]).toEqual(["NaN", "0", "0.333333", "1.500e-9"]);
  expect([size("0"), size("1536"), size(3 * 2 ** 30)]).toEqual(["0 B", "1.50 KiB", "3.00 GiB"]);
  const start = "2026-01-01T00:00:00Z";
  expect([took(start, "2026-01-01T01:05:00Z", 0), took(start, undefined, Date.parse(start) + 61_000), took(undefined, undefined, 0)]).toEqual(["1 h 05 min", "1 min 01 s", ""]);
});

it("joins the lines of a paragraph", () => {
  expect(paragraphs("one\ntwo\n\nthree\nfour")).toBe("one two\n\nthree four");
});

it("takes the colours out of a log line", () => {
  expect(clean("\u001b[32mok\u001b[0m\r\u001b]0;title\u0007 done\tx")).toBe("ok done\tx");
});

it("shows rows of every format", () => {
  const turn = { role: "user", content: "2+2?" };
  expect(partsOf({ answer: "4", prompt: [turn], metadata: { a: 1 } }).map((part) => [part.name, part.turns])).toEqual([["prompt", [turn]], ["answer", null], ["metadata", null]]);
  expect(partsOf({ prompt: [{ role: 1 }] })[0]?.turns).toBeNull();
});

it("says everything in both languages, with the same places for values", () => {
  const places = (text: string): string[] => (text.match(/\{\w+\}/g) ?? []).sort();
  const compare = (a: Record<string, unknown>, b: Record<string, unknown>): void => {
    expect(Object.keys(b)).toEqual(Object.keys(a));
    for (const key of Object.keys(a)) {
      const [one, other] = [a[key], b[key]];
      if (typeof one === "string") expect([...new Set(places(other as string))]).toEqual([...new Set(places(one))]);
      else compare(one as Record<string, unknown>, other as Record<string, unknown>);
    }
  };
  compare(en, zh);
});

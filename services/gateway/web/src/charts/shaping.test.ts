import { describe, expect, it } from "vitest";

import { Series, type Line } from "./series";
import { downsample, pairs, smooth, toCsv, valueAt, window } from "./shaping";

function lineOf(values: number[]): Line {
  return { steps: values.map((_, i) => i + 1), values };
}

describe("Series", () => {
  it("takes for each step the highest attempt that reported it, whatever the order of arrival", () => {
    const series = new Series();
    for (const [step, value, attempt] of [[1, 10, 1], [2, 20, 1], [3, 30, 1], [4, 40, 1], [2, 200, 2], [3, 300, 2]] as const) series.add(step, value, attempt);
    expect(series.effective()).toEqual({ steps: [1, 2, 3, 4], values: [10, 200, 300, 40] });
    expect(series.ofAttempt(1).values).toEqual([10, 20, 30, 40]);
    expect(series.attemptNumbers).toEqual([1, 2]);
  });

  it("keeps steps in order and takes the last value of a step", () => {
    const series = new Series();
    for (const [step, value] of [[5, 50], [1, 10], [3, 30], [3, 33]] as const) series.add(step, value, 1);
    expect(series.effective()).toEqual({ steps: [1, 3, 5], values: [10, 33, 50] });
  });

  it("shows new points after it has been drawn", () => {
    const series = new Series();
    series.add(1, 1, 1);
    series.add(1, 2, 2);
    expect(series.effective().values).toEqual([2]);
    series.add(2, 3, 2);
    expect(series.effective().values).toEqual([2, 3]);
  });
});

describe("downsample", () => {
  it("leaves a line alone that is short enough", () => {
    const line = lineOf([1, 2, 3]);
    expect(downsample(line, 10)).toBe(line);
  });

  it("keeps the ends, every spike and the order, within the limit", () => {
    const values = Array.from({ length: 100_000 }, (_, i) => Math.sin(i / 500));
    values[12_345] = 99;
    values[77_777] = -99;
    const found = downsample(lineOf(values), 5000);
    expect(found.steps.length).toBeLessThanOrEqual(5000);
    expect(found.steps.length).toBeGreaterThan(2500);
    expect(found.values).toContain(99);
    expect(found.values).toContain(-99);
    expect([found.steps[0], found.steps.at(-1)]).toEqual([1, 100_000]);
    expect(found.steps.every((step, i) => i === 0 || step > (found.steps[i - 1] as number))).toBe(true);
  });

  it("keeps a NaN", () => {
    const values = Array.from({ length: 10_000 }, () => 1);
    values[5000] = NaN;
    expect(downsample(lineOf(values), 100).values.some(Number.isNaN)).toBe(true);
  });
});

describe("window", () => {
  it("keeps one point beyond either end", () => {
    const line = lineOf([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(window(line, 3, 5).steps).toEqual([2, 3, 4, 5, 6]);
    expect(window(line, 0, 100).steps).toEqual(line.steps);
  });
});

describe("smooth", () => {
  it("starts at the first value and follows a constant exactly", () => {
    expect(smooth(lineOf([4, 4, 4]), 0.9).values).toEqual([4, 4, 4].map((value) => expect.closeTo(value, 12)));
  });

  it("is the weighted mean of what came before", () => {
    expect(smooth(lineOf([0, 1]), 0.5).values[1]).toBeCloseTo(2 / 3, 12);
  });

  it("goes on past what is not finite", () => {
    const found = smooth(lineOf([1, NaN, 1]), 0.5).values;
    expect(found[1]).toBeNaN();
    expect(found[2]).toBeCloseTo(1, 12);
  });
});

it("draws a gap for what a log scale cannot show", () => {
  expect(pairs(lineOf([1, 0, -1, NaN, 2]), true)).toEqual([[1, 1], [2, null], [3, null], [4, null], [5, 2]]);
  expect(pairs(lineOf([0, Infinity]), false)).toEqual([[1, 0], [2, null]]);
});

it("reads the value at or before a step", () => {
  const line = { steps: [2, 4], values: [20, 40] };
  expect([1, 2, 3, 4, 9].map((step) => valueAt(line, step)?.value)).toEqual([undefined, 20, 20, 40, 40]);
});

it("quotes what needs it in CSV", () => {
  expect(toCsv([["a,b", 'say "x"', 1, lineOf([0.5])]])).toBe('job,metric,attempt,step,value\n"a,b","say ""x""",1,1,0.5\n');
});

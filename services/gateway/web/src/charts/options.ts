import { metric } from "../shared/format";
import type { Line } from "./series";
import { downsample, pairs, smooth, window } from "./shaping";

/** One line of a chart. `line` is whole and as it was reported. */
export interface Curve {
  label: string;
  line: Line;
  colour: string;
  dashed: boolean;
}

export interface Look {
  smoothing: number;
  logarithmic: boolean;
  /** First and last step shown; null shows all. */
  range: readonly [number, number] | null;
  colours: { text: string; muted: string; line: string };
  /** Where the pointer's read-out comes from. */
  readOut: (step: number) => HTMLElement;
}

/** What ECharts draws: for each curve its line and, where it is smoothed, the reported one faintly under it. */
export function options(curves: readonly Curve[], look: Look): Record<string, unknown> {
  const { colours, range, logarithmic } = look;
  const axis = { axisLine: { lineStyle: { color: colours.line } }, axisLabel: { color: colours.muted, fontSize: 11, hideOverlap: true } };
  const split = { lineStyle: { color: colours.line, opacity: 0.7 } };
  return {
    animation: false,
    grid: { left: 8, right: 14, top: 10, bottom: 4, containLabel: true },
    tooltip: {
      trigger: "axis",
      className: "read-out",
      confine: true,
      axisPointer: { type: "line", lineStyle: { color: colours.muted } },
      formatter: (at: { axisValue: number }[]) => look.readOut(Number(at[0]?.axisValue ?? 0)),
    },
    xAxis: { type: "value", min: range?.[0] ?? "dataMin", max: range?.[1] ?? "dataMax", minInterval: 1, splitLine: { show: false }, ...axis },
    yAxis: { type: logarithmic ? "log" : "value", scale: true, splitLine: split, ...axis, axisLabel: { ...axis.axisLabel, formatter: metric } },
    series: curves.flatMap((curve) => lines(curve, look)),
  };
}

function lines(curve: Curve, look: Look): Record<string, unknown>[] {
  const cut = (line: Line): Line => (look.range === null ? line : window(line, look.range[0], look.range[1]));
  const drawn = (line: Line, opacity: number, width: number): Record<string, unknown> => {
    const data = pairs(downsample(cut(line)), look.logarithmic);
    const lone = data.length < 40;
    return {
      type: "line",
      name: curve.label,
      data,
      // A line through one point is nothing: few points are marked.
      showSymbol: lone && opacity === 1,
      symbol: "circle",
      symbolSize: 4,
      silent: true,
      itemStyle: { color: curve.colour, opacity },
      lineStyle: { color: curve.colour, opacity, width, type: curve.dashed ? "dashed" : "solid" },
    };
  };
  if (look.smoothing <= 0) return [drawn(curve.line, 1, 1.6)];
  return [drawn(curve.line, 0.25, 1), drawn(smooth(curve.line, look.smoothing), 1, 1.8)];
}

/** Told apart by people who don't see all colours alike, on white and on black (Okabe and Ito 2008, adapted). */
export const PALETTE = {
  light: ["#1f5fbf", "#c2500b", "#0b7f5f", "#a13a86", "#7a6a00", "#3b8fc4"],
  dark: ["#6ea8ff", "#f0955a", "#46c69b", "#dd8cc4", "#d8c64a", "#8fd0f5"],
} as const;

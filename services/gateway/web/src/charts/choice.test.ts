import { expect, it } from "vitest";

import { grouped, usual } from "./choice";

it("shows reward and loss first, and something where neither is there", () => {
  expect(usual(["actor/entropy", "train/loss", "zzz", "reward/mean"])).toEqual(["reward/mean", "train/loss", "actor/entropy"]);
  expect(usual(["verl/critic/loss", "critic/loss", "critic/explained_variance", "rewards/margin", "rewards/chosen"])).toEqual([
    "rewards/margin", "critic/explained_variance", "critic/loss",
  ]);
  expect(usual(["b", "a"])).toEqual(["b", "a"]);
});

it("shows first what the algorithm names, of what there is", () => {
  const headline = ["train/loss", "validation/loss", "validation/score/mean"];
  expect(usual(["validation/loss", "actor/entropy", "reward/mean", "train/loss"], headline)).toEqual([
    "train/loss", "validation/loss", "reward/mean", "actor/entropy",
  ]);
});

it("groups by what stands before the first slash", () => {
  expect(grouped(["b/y/z", "a", "b/x"])).toEqual([["", ["a"]], ["b", ["b/x", "b/y/z"]]]);
});

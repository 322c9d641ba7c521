import { describe, expect, it } from "vitest";

import { isAsked, noOptions, pairsOf, readOptions, rowsToSkip, sortUpload, type Options } from "./options";

function read(options: Partial<Options>): ReturnType<typeof readOptions> {
  return readOptions({ ...noOptions(), ...options });
}

describe("readOptions", () => {
  it("sends nothing that was not asked for", () => {
    expect(read({})).toEqual({ fields: {}, mistakes: {} });
    expect(read({ mapping: [{ key: " ", name: "" }], splitName: "" })).toEqual({ fields: {}, mistakes: {} });
    expect([isAsked(noOptions()), isAsked({ ...noOptions(), skip: "1" }), isAsked({ ...noOptions(), splitName: "test" })]).toEqual([false, true, true]);
  });

  it("reads names, rows or a share of them, and what to hold out", () => {
    const mapping = [{ key: " question ", name: "prompt" }, { key: "__proto__", name: "completion" }];
    expect(Object.entries(read({ mapping }).fields.fieldMapping ?? {})).toEqual([["question", "prompt"], ["__proto__", "completion"]]);
    expect(read({ skip: "20" }).fields).toEqual({ maxInvalidRowCount: "20" });
    expect(read({ skip: "2.5 %" }).fields).toEqual({ maxInvalidRowShare: 0.025 });
    expect(read({ splitShare: "5%" }).fields).toEqual({ split: { name: "validation", share: 0.05, seed: "0" } });
    expect(read({ splitShare: ".25", splitName: "test", splitSeed: "-7" }).fields).toEqual({ split: { name: "test", share: 0.25, seed: "-7" } });
  });

  it("names what cannot be read, all at once", () => {
    const mapping = [{ key: "a", name: "" }, { key: "b", name: "prompt" }, { key: "b", name: "answer" }];
    expect(read({ mapping, skip: "many", splitShare: "half", splitName: " ", splitSeed: "1.5" }).mistakes).toEqual({
      "field_mapping.0": "upload.mistakes.pair", "field_mapping.2": "upload.mistakes.twice", skip_invalid: "upload.mistakes.skip",
      "split.name": "form.required", "split.share": "upload.mistakes.share", "split.seed": "form.notInteger",
    });
    for (const skip of ["0", "100%", "0%", "-1", "1.5", "1e3"]) expect(read({ skip }).mistakes).toEqual({ skip_invalid: "upload.mistakes.skip" });
    expect(read({ splitSeed: "7" }).mistakes).toEqual({ "split.share": "form.required" });
    expect(read({ splitName: "test" }).mistakes).toEqual({ "split.share": "form.required" });
  });
});

it("sorts what the mesh says to the fields, and about a key to its pair", () => {
  const said = ["upload.field_mapping.userQuestion", "upload.field_mapping", "upload.max_invalid_row_count", "upload.split.share", "dataset.dataset_id", "upload.file_name", "upload.field_mapping.gone"];
  const { byField, ofForm } = sortUpload([...said, "parent"].map((field) => ({ field, description: field })), [{ key: "userQuestions", name: "answer" }, { key: "userQuestion ", name: "nothing" }]);
  expect(byField).toEqual({
    "field_mapping.1": ["upload.field_mapping.userQuestion"], field_mapping: ["upload.field_mapping", "gone: upload.field_mapping.gone"],
    skip_invalid: ["upload.max_invalid_row_count"], "split.share": ["upload.split.share"], dataset_id: ["dataset.dataset_id"], file_name: ["upload.file_name"],
  });
  expect(ofForm.map((one) => one.field)).toEqual(["parent"]);
});

it("offers to leave wrong rows out where they are not most of them", () => {
  expect([rowsToSkip("50", "1"), rowsToSkip("2", "1"), rowsToSkip("3", "2"), rowsToSkip("5", "0")]).toEqual([1, 1, 0, 0]);
});

it("shows a mapping in the order of a row", () => {
  expect(pairsOf({ gold: "completion", note: "system", asked: "prompt" }).map((pair) => pair.key)).toEqual(["asked", "gold", "note"]);
});

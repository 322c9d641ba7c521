import { describe, expect, it } from "vitest";

import { fieldsOf, mapFields, replaceField, type Field, type JsonSchema } from "./schema";
import { chosen, isOn, limits, read, shown, valuesOf } from "./values";
import { sortViolations } from "./violations";

const SCHEMA: JsonSchema = {
  $defs: {
    Lora: {
      type: "object",
      description: "adapters",
      properties: {
        rank: { type: "integer", minimum: 1, maximum: 1024, default: 16 },
        target_modules: { anyOf: [{ type: "string" }, { type: "array", items: { type: "string" } }], default: "all-linear" },
      },
    },
  },
  type: "object",
  required: ["pattern"],
  properties: {
    pattern: { type: "string" },
    learning_rate: { type: "number", exclusiveMinimum: 0, maximum: 1, default: 1e-5, description: "peak" },
    steps: { anyOf: [{ type: "integer", minimum: 1 }, { type: "null" }], default: null },
    scheduler: { enum: ["constant", "cosine"], type: "string", default: "cosine" },
    strict: { type: "boolean", default: true },
    lora: { anyOf: [{ $ref: "#/$defs/Lora" }, { type: "null" }], default: null, description: "null trains all weights" },
    validation: { $ref: "#/$defs/Lora", default: { rank: 16 } },
    extra: { type: "object", additionalProperties: true } as JsonSchema,
  },
};
const FIELDS = fieldsOf(SCHEMA, ["learning_rate"]);

function field(key: string): Field {
  const found = [...FIELDS, ...FIELDS.flatMap((one) => one.children)].find((one) => one.key === key);
  if (found === undefined) throw new Error(key);
  return found;
}

describe("fieldsOf", () => {
  it("puts what is named first before the rest, which is sorted", () => {
    expect(FIELDS.map((one) => one.name)).toEqual(["learning_rate", "extra", "lora", "pattern", "scheduler", "steps", "strict", "validation"]);
  });

  it("knows each kind, through references and unions with null", () => {
    expect(Object.fromEntries(FIELDS.map((one) => [one.name, one.kind]))).toEqual({
      learning_rate: "number", extra: "json", lora: "object", pattern: "text", scheduler: "choice", steps: "integer", strict: "boolean", validation: "object",
    });
    expect([field("steps").nullable, field("lora").nullable, field("validation").nullable]).toEqual([true, true, false]);
    expect(field("lora.target_modules").kind).toBe("strings");
    expect(field("lora").description).toBe("null trains all weights");
    expect(field("validation").description).toBe("adapters");
  });

  it("tells limits", () => {
    expect(limits(field("learning_rate"))).toBe("> 0, ≤ 1");
    expect(limits(field("lora.rank"))).toBe("1 … 1,024");
  });
});

describe("read", () => {
  it("sends only what differs from what the server takes anyway", () => {
    expect(read(FIELDS, { pattern: "x", learning_rate: "0.00001", strict: true, "validation.rank": "16" }).params).toEqual({ pattern: "x" });
    expect(read(FIELDS, { pattern: "x", learning_rate: "1e-3", strict: false, "validation.rank": "8" }).params).toEqual({
      pattern: "x", learning_rate: 0.001, strict: false, validation: { rank: 8 },
    });
  });

  it("sends an object that is switched on, and nothing of one that is off", () => {
    expect(read(FIELDS, { pattern: "x", lora: true }).params).toEqual({ pattern: "x", lora: {} });
    expect(read(FIELDS, { pattern: "x", lora: false, "lora.rank": "4" }).params).toEqual({ pattern: "x" });
    expect(read(FIELDS, { pattern: "x", lora: true, "lora.target_modules": "q, v" }).params).toEqual({ pattern: "x", lora: { target_modules: ["q", "v"] } });
  });

  it("takes an emptied field for null where null may stand", () => {
    expect(read(FIELDS, { pattern: "x", steps: "12" }).params).toEqual({ pattern: "x", steps: 12 });
    expect(read(FIELDS, { pattern: "x", steps: "" }).params).toEqual({ pattern: "x" });
  });

  it("tells every field that cannot be read", () => {
    expect(read(FIELDS, { learning_rate: "fast", steps: "1.5", extra: "{" }).mistakes).toEqual({
      pattern: "form.required", learning_rate: "form.notNumber", steps: "form.notInteger", extra: "form.notJson",
    });
    expect(read(FIELDS, { learning_rate: "fast", steps: "1.5", extra: "{", "lora": true, "lora.rank": "2" }).params).toEqual({
      learning_rate: "fast", steps: "1.5", extra: "{", lora: { rank: 2 },
    });
  });

  it("shows the defaults", () => {
    expect([shown(field("learning_rate")), shown(field("steps")), isOn(field("lora"), {}), isOn(field("validation"), {})]).toEqual(["0.00001", "", false, true]);
  });
});

describe("settings by name", () => {
  const schema: JsonSchema = {
    properties: {
      overrides: {
        anyOf: [
          { type: "object", additionalProperties: true, properties: { "a.b": { type: "number", default: 0.5 }, "a.c": { type: "boolean", default: true }, "d": { anyOf: [{ type: "string", enum: ["x"] }, { type: "null" }], default: null } } },
          { type: "null" },
        ],
      },
    },
  };
  const [field] = fieldsOf(schema) as [Field];

  it("are a list to choose from, of which only those that were taken are sent", () => {
    expect(field.kind).toBe("settings");
    expect(field.children.map((one) => [one.key, one.kind])).toEqual([["overrides.a.b", "number"], ["overrides.a.c", "boolean"], ["overrides.d", "choice"]]);
    expect(chosen(field, {})).toEqual([]);
    expect(read([field], {}).params).toEqual({});
    expect(read([field], { "overrides.a.b": "0.5", "overrides.a.c": true, "overrides.d": "" }).params).toEqual({ overrides: { "a.b": 0.5, "a.c": true, d: null } });
  });

  it("are read by their types, an empty one too", () => {
    expect(read([field], { "overrides.a.b": "much" }).mistakes).toEqual({ "overrides.a.b": "form.notNumber" });
    expect(read([field], { "overrides.a.b": "" }).mistakes).toEqual({ "overrides.a.b": "form.required" });
  });
});

it("holds the params of a job so that the same are sent again", () => {
  const fields = fieldsOf({
    properties: {
      rank: { type: "integer", default: 16 },
      strict: { type: "boolean", default: true },
      none: { anyOf: [{ type: "integer" }, { type: "null" }], default: 3 },
      tags: { type: "array", items: { type: "string" }, default: [] },
      parts: { type: "array", items: { type: "object" } },
      schema: { type: "object", additionalProperties: true },
      lora: { anyOf: [{ type: "object", properties: { rank: { type: "integer", default: 16 } } }, { type: "null" }], default: null },
      off: { anyOf: [{ type: "object", properties: { rank: { type: "integer" } } }, { type: "null" }], default: { rank: 1 } },
      overrides: { type: "object", additionalProperties: true, properties: { "a.b": { type: "number" }, "a.c": { type: "boolean" } } },
    },
  } as JsonSchema);
  const params = {
    rank: 4, strict: false, none: null, tags: ["think"], parts: [{ name: "exact" }], schema: { type: "object" }, lora: { rank: 2 }, off: null,
    overrides: { a: { b: 0.5, c: false } },
  };
  const again = read(fields, valuesOf(fields, params));
  expect(again.mistakes).toEqual({});
  expect(again.params).toEqual({ ...params, overrides: { "a.b": 0.5, "a.c": false } });
  expect(valuesOf(fields, { gone: 1 })).toEqual({});
});

it("sends what a suggestion stands for, and any other text as it is", () => {
  const found = mapFields(fieldsOf({ properties: { model: { type: "string", format: "reward-model" } } }), (one) => ({ ...one, suggestions: [{ text: "j/step-1", value: "projects/p/trainingJobs/j/checkpoints/step-1", detail: "" }] }));
  expect(found[0]?.format).toBe("reward-model");
  expect(read(found, { model: " j/step-1" }).params).toEqual({ model: "projects/p/trainingJobs/j/checkpoints/step-1" });
  expect(read(found, { model: "projects/p/models/m" }).params).toEqual({ model: "projects/p/models/m" });
});

it("replaces a field at any depth", () => {
  const found = replaceField(FIELDS, "lora.rank", (one) => ({ ...one, kind: "choice", choices: [1] }));
  expect(found.find((one) => one.key === "lora")?.children.find((one) => one.key === "lora.rank")?.choices).toEqual([1]);
  expect(field("lora.rank").choices).toEqual([]);
});

describe("sortViolations", () => {
  const places = new Set(["base_model", "params.lora", "params.lora.rank", "params.batch_size"]);

  it("puts each beside its field, else to the nearest above, else to the form", () => {
    const sorted = sortViolations(
      [
        { field: "training_job.params.batch_size", description: "a" },
        { field: "training_job.params.lora.rank", description: "b" },
        { field: "training_job.params.lora.target_modules.0", description: "c" },
        { field: "trainingJob.baseModel", description: "d" },
        { field: "parent", description: "e" },
        { field: "training_job.params.batch_size", description: "f" },
      ],
      places,
      "training_job",
    );
    expect(sorted.byField).toEqual({ "params.batch_size": ["a", "f"], "params.lora.rank": ["b"], "params.lora": ["target_modules.0: c"], base_model: ["d"] });
    expect(sorted.ofForm).toEqual([{ field: "parent", description: "e" }]);
  });
});

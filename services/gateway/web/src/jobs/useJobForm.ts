import { computed, reactive, ref, shallowRef, watch, type ComputedRef, type Ref, type ShallowRef } from "vue";
import { useI18n } from "vue-i18n";

import { asProblem, isRecord, type Problem, type Violation } from "../api/problem";
import type { Algorithm, Checkpoint, Model, Reward, TrainingJob, TrainingJobInput } from "../api/types";
import { listAllDatasets } from "../datasets/api";
import { fieldsOf, mapFields, replaceField, type Field, type JsonSchema, type Suggestion } from "../forms/schema";
import { read, valuesOf, type Values } from "../forms/values";
import { sortViolations } from "../forms/violations";
import { listModels, scores } from "../models/api";
import { createJob, listAlgorithms, listCheckpoints, listJobs, listRewards } from "./api";
import { BASIC } from "./params";
import { idOf, shortName } from "../api/names";

export interface JobForm {
  /** As typed. */
  job: { algorithm: string; baseModel: string; datasetVersion: string; validationDatasetVersion: string; id: string; slots: string; priority: string };
  values: Values;
  algorithms: ShallowRef<Algorithm[]>;
  algorithm: ComputedRef<Algorithm | undefined>;
  models: ShallowRef<Model[]>;
  checkpoints: ShallowRef<string[]>;
  /** Versions of a format that the algorithm takes; of one that it can be validated with. */
  fitting: ComputedRef<string[]>;
  validating: ComputedRef<string[]>;
  basic: ComputedRef<Field[]>;
  advanced: ComputedRef<Field[]>;
  errors: ComputedRef<Record<string, string[]>>;
  /** Of the whole job, or of fields that the form does not have. */
  violations: ComputedRef<Violation[]>;
  /** How many fields are wrong. */
  wrong: ComputedRef<number>;
  problem: ComputedRef<Problem | null>;
  loading: ShallowRef<Problem | null>;
  loaded: Ref<boolean>;
  busy: Ref<boolean>;
  load: () => Promise<void>;
  fillFrom: (job: TrainingJob) => void;
  /** A model, or a checkpoint, which need not be one of the newest. */
  startFrom: (name: string) => void;
  change: (key: string, value: string | boolean | null) => void;
  send: (validateOnly: boolean) => Promise<TrainingJob | null>;
}

const OWN_FIELDS = ["algorithm", "base_model", "dataset_version", "validation_dataset_version", "training_job_id", "placement.resources.gpu_count", "priority"];
/** Parameters that name a reward and its params. */
const REWARDS = ["reward", "held_out_reward"];
/** Kinds of checkpoints that a job can start from. */
const BASES: readonly string[] = ["KIND_FULL", "KIND_ADAPTER"];

export function useJobForm(): JobForm {
  const { t } = useI18n();
  const job = reactive({ algorithm: "", baseModel: "", datasetVersion: "", validationDatasetVersion: "", id: "", slots: "", priority: "" });
  const values = reactive<Values>({});
  const algorithms = shallowRef<Algorithm[]>([]);
  const rewards = shallowRef<Reward[]>([]);
  const models = shallowRef<Model[]>([]);
  const checkpoints = shallowRef<string[]>([]);
  const judges = shallowRef<Suggestion[]>([]);
  const versions = shallowRef<{ name: string; format: string }[]>([]);
  const problem = shallowRef<Problem | null>(null);
  const loading = shallowRef<Problem | null>(null);
  const mistakes = ref<Record<string, string>>({});
  const loaded = ref(false);
  const busy = ref(false);
  let requestId = crypto.randomUUID();

  const algorithm = computed(() => algorithms.value.find((one) => one.entry.id === job.algorithm));
  const fields = computed<Field[]>(() => {
    const found = fieldsOf((algorithm.value?.entry.paramsSchema ?? {}) as JsonSchema, BASIC);
    const judged = REWARDS.reduce((fields, key) => withReward(fields, key, rewards.value, values), found);
    return mapFields(judged, (field) => (field.format === "reward-model" ? { ...field, suggestions: judges.value } : field));
  });
  const basic = computed(() => fields.value.filter((field) => field.required || BASIC.includes(field.name)));
  const advanced = computed(() => fields.value.filter((field) => !basic.value.includes(field)));
  const ofFormat = (formats: readonly string[]): string[] => versions.value.filter((one) => formats.includes(one.format)).map((one) => one.name);
  const fitting = computed(() => ofFormat(algorithm.value?.datasetFormats ?? []));
  const validating = computed(() => ofFormat(algorithm.value?.validationFormats ?? []));

  const sorted = computed(() => {
    const places = new Set([...OWN_FIELDS, ...keysOf(fields.value).map((key) => `params.${key}`)]);
    return sortViolations(problem.value?.violations ?? [], places, "training_job");
  });
  const errors = computed(() => {
    const found: Record<string, string[]> = {};
    for (const [key, texts] of Object.entries(sorted.value.byField)) found[key.replace(/^params\./, "")] = texts;
    for (const [key, word] of Object.entries(mistakes.value)) found[key] = [t(word)];
    return found;
  });

  watch(
    () => job.algorithm,
    () => {
      problem.value = null;
      mistakes.value = {};
      if (!fitting.value.includes(job.datasetVersion)) job.datasetVersion = fitting.value[0] ?? "";
      if (!validating.value.includes(job.validationDatasetVersion)) job.validationDatasetVersion = "";
    },
  );

  async function load(): Promise<void> {
    loading.value = null;
    try {
      const [known, ready] = await Promise.all([listAlgorithms(), readyModels()]);
      [rewards.value, versions.value] = await Promise.all([listRewards(), newestVersions()]);
      algorithms.value = known;
      models.value = ready.filter((model) => !scores(model));
      job.algorithm ||= algorithms.value.find((one) => one.entry.id === "sft")?.entry.id ?? algorithms.value[0]?.entry.id ?? "";
      job.baseModel ||= models.value[0]?.name ?? "";
      loaded.value = true;
      const left = await recentCheckpoints();
      checkpoints.value = left.filter((one) => BASES.includes(one.kind)).map((one) => one.name);
      judges.value = [...ready.filter(scores).map(asSuggestion), ...left.filter((one) => one.kind === "KIND_REWARD").map(asSuggestion)];
    } catch (error) {
      loading.value = asProblem(error);
    }
  }

  function fillFrom(other: TrainingJob): void {
    const { algorithm: name, baseModel, datasetVersion, validationDatasetVersion } = other;
    const slots = other.placement?.resources?.gpuCount;
    const known = algorithms.value.find((one) => one.entry.id === name);
    // An older version is not in the list, and fits: the job was taken with it.
    for (const [version, format] of [[datasetVersion, known?.datasetFormats[0]], [validationDatasetVersion, known?.validationFormats[0]]] as const) {
      if (version && !versions.value.some((one) => one.name === version)) versions.value = [...versions.value, { name: version, format: format ?? "" }];
    }
    startFrom(baseModel);
    Object.assign(job, { algorithm: name, datasetVersion, validationDatasetVersion, slots: slots ? String(slots) : "", priority: other.priority ? String(other.priority) : "" });
    const params = isRecord(other.params) ? other.params : {};
    for (const key of REWARDS) {
      // Which reward it is says which fields its params have.
      const reward = params[key];
      if (isRecord(reward) && typeof reward["name"] === "string") values[`${key}.name`] = reward["name"];
    }
    Object.assign(values, valuesOf(fields.value, params));
  }

  function startFrom(name: string): void {
    if (name.includes("/checkpoints/") && !checkpoints.value.includes(name)) checkpoints.value = [...checkpoints.value, name];
    job.baseModel = name;
  }

  function change(key: string, value: string | boolean | null): void {
    if (value === null) delete values[key];
    else values[key] = value;
    delete mistakes.value[key];
  }

  async function send(validateOnly: boolean): Promise<TrainingJob | null> {
    const found = read(fields.value, values);
    for (const [key, text] of [["placement.resources.gpu_count", job.slots], ["priority", job.priority]] as const) {
      if (!Number.isInteger(Number(text))) found.mistakes[key] = "form.notInteger";
    }
    mistakes.value = found.mistakes;
    problem.value = null;
    // What is wrong with the rest is told in the same go.
    const right = Object.keys(found.mistakes).length === 0;
    busy.value = true;
    try {
      const made = await createJob(described(found.params), job.id.trim(), requestId, validateOnly || !right);
      if (!right) return null;
      if (!validateOnly) requestId = crypto.randomUUID();
      return made;
    } catch (error) {
      problem.value = asProblem(error);
      // The same id again would stand for the request that was refused.
      if (!problem.value.passing) requestId = crypto.randomUUID();
      return null;
    } finally {
      busy.value = false;
    }
  }

  function described(params: Record<string, unknown>): TrainingJobInput {
    const { algorithm: name, baseModel, datasetVersion, validationDatasetVersion, slots, priority } = job;
    const whole = (text: string): number => Math.trunc(Number(text)) || 0;
    return {
      algorithm: name,
      baseModel,
      datasetVersion,
      ...(validationDatasetVersion && { validationDatasetVersion }),
      params,
      ...(slots.trim() && { placement: { resources: { gpuCount: whole(slots) } } }),
      ...(priority.trim() && { priority: whole(priority) }),
    };
  }

  return {
    job, values, algorithms, algorithm, models, checkpoints, fitting, validating, basic, advanced, errors, problem: computed(() => (problem.value?.violations.length ? null : problem.value)),
    violations: computed(() => sorted.value.ofForm), wrong: computed(() => Object.keys(errors.value).length), loading, loaded, busy, load, fillFrom, startFrom, change, send,
  };
}

function keysOf(fields: readonly Field[]): string[] {
  return fields.flatMap((field) => [field.key, ...keysOf(field.children)]);
}

/** `reward.name` offers the registered rewards, and `reward.params` are the chosen one's; `key` is `reward`, or another. */
function withReward(fields: Field[], key: string, rewards: readonly Reward[], values: Values): Field[] {
  const name = fields.find((field) => field.key === key)?.children.find((field) => field.key === `${key}.name`);
  if (name === undefined || rewards.length === 0) return fields;
  const chosen = rewards.find((reward) => reward.entry.id === (values[`${key}.name`] ?? name.fallback));
  const choosing = replaceField(fields, `${key}.name`, (field) => ({ ...field, kind: "choice", choices: rewards.map((reward) => reward.entry.id), description: chosen?.entry.summary ?? field.description }));
  if (chosen === undefined) return choosing;
  const schema = chosen.entry.paramsSchema as JsonSchema;
  return replaceField(choosing, `${key}.params`, (field) => ({ ...field, kind: "object", nullable: false, children: fieldsOf(schema, [], `${key}.params`, schema) }));
}

async function readyModels(): Promise<Model[]> {
  return (await listModels()).filter((model) => model.state === "STATE_READY");
}

function asSuggestion(found: Model | Checkpoint): Suggestion {
  return { text: shortName(found.name), value: found.name, detail: found.name };
}

async function newestVersions(): Promise<{ name: string; format: string }[]> {
  return (await listAllDatasets()).filter((dataset) => dataset.latestVersion).map((dataset) => ({ name: dataset.latestVersion, format: dataset.format }));
}

/** What the newest jobs have left: another can start from it, or be judged by it. */
async function recentCheckpoints(): Promise<Checkpoint[]> {
  const jobs = await listJobs(["JOB_STATE_SUCCEEDED", "JOB_STATE_CANCELLED"], 1, 20);
  const found = await Promise.all(jobs.items.map((one) => listCheckpoints(idOf(one.name)).catch(() => [])));
  return found.flat().filter((one) => one.state === "STATE_READY");
}

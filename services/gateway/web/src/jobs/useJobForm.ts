import { computed, reactive, ref, shallowRef, watch, type ComputedRef, type Ref, type ShallowRef } from "vue";
import { useI18n } from "vue-i18n";

import { asProblem, isRecord, type Problem, type Violation } from "../api/problem";
import type { Algorithm, Model, Reward, TrainingJob, TrainingJobInput } from "../api/types";
import { listAllDatasets } from "../datasets/api";
import { fieldsOf, replaceField, type Field, type JsonSchema } from "../forms/schema";
import { read, type Values } from "../forms/values";
import { sortViolations } from "../forms/violations";
import { listModels } from "../models/api";
import { createJob, listAlgorithms, listCheckpoints, listJobs, listRewards } from "./api";
import { BASIC, flatten } from "./params";
import { idOf } from "../api/names";

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
  change: (key: string, value: string | boolean) => void;
  send: (validateOnly: boolean) => Promise<TrainingJob | null>;
}

const OWN_FIELDS = ["algorithm", "base_model", "dataset_version", "validation_dataset_version", "training_job_id", "placement.resources.gpu_count", "priority"];
const VALIDATION_FORMATS = ["prompt", "messages"];

export function useJobForm(): JobForm {
  const { t } = useI18n();
  const job = reactive({ algorithm: "", baseModel: "", datasetVersion: "", validationDatasetVersion: "", id: "", slots: "", priority: "" });
  const values = reactive<Values>({});
  const algorithms = shallowRef<Algorithm[]>([]);
  const rewards = shallowRef<Reward[]>([]);
  const models = shallowRef<Model[]>([]);
  const checkpoints = shallowRef<string[]>([]);
  const versions = shallowRef<{ name: string; format: string }[]>([]);
  const problem = shallowRef<Problem | null>(null);
  const loading = shallowRef<Problem | null>(null);
  const mistakes = ref<Record<string, string>>({});
  const loaded = ref(false);
  const busy = ref(false);
  let requestId = crypto.randomUUID();

  const algorithm = computed(() => algorithms.value.find((one) => one.algorithmId === job.algorithm));
  const fields = computed<Field[]>(() => withReward(fieldsOf((algorithm.value?.paramsSchema ?? {}) as JsonSchema, BASIC), rewards.value, values));
  const basic = computed(() => fields.value.filter((field) => field.required || BASIC.includes(field.name)));
  const advanced = computed(() => fields.value.filter((field) => !basic.value.includes(field)));
  const ofFormat = (formats: readonly string[]): string[] => versions.value.filter((one) => formats.includes(one.format)).map((one) => one.name);
  const fitting = computed(() => ofFormat(algorithm.value?.datasetFormats ?? []));
  const validating = computed(() => ofFormat(VALIDATION_FORMATS));

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
    },
  );

  async function load(): Promise<void> {
    loading.value = null;
    try {
      [algorithms.value, rewards.value, models.value, versions.value] = await Promise.all([listAlgorithms(), listRewards(), readyModels(), newestVersions()]);
      job.algorithm ||= algorithms.value.find((one) => one.algorithmId === "sft")?.algorithmId ?? algorithms.value[0]?.algorithmId ?? "";
      job.baseModel ||= models.value[0]?.name ?? "";
      loaded.value = true;
      checkpoints.value = await recentCheckpoints();
    } catch (error) {
      loading.value = asProblem(error);
    }
  }

  function fillFrom(other: TrainingJob): void {
    const { algorithm: name, baseModel, datasetVersion, validationDatasetVersion } = other;
    const slots = other.placement?.resources?.gpuCount;
    if (!versions.value.some((one) => one.name === datasetVersion)) {
      versions.value = [...versions.value, { name: datasetVersion, format: algorithms.value.find((one) => one.algorithmId === name)?.datasetFormats[0] ?? "" }];
    }
    if (baseModel.includes("/checkpoints/") && !checkpoints.value.includes(baseModel)) checkpoints.value = [...checkpoints.value, baseModel];
    Object.assign(job, { algorithm: name, baseModel, datasetVersion, validationDatasetVersion, slots: slots ? String(slots) : "", priority: other.priority ? String(other.priority) : "" });
    Object.assign(values, flatten(isRecord(other.params) ? other.params : {}));
  }

  function change(key: string, value: string | boolean): void {
    values[key] = value;
    delete mistakes.value[key];
  }

  async function send(validateOnly: boolean): Promise<TrainingJob | null> {
    const found = read(fields.value, values);
    mistakes.value = found.mistakes;
    problem.value = null;
    if (Object.keys(found.mistakes).length > 0) return null;
    busy.value = true;
    try {
      const made = await createJob(described(found.params), job.id.trim(), requestId, validateOnly);
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
    violations: computed(() => sorted.value.ofForm), wrong: computed(() => Object.keys(errors.value).length), loading, loaded, busy, load, fillFrom, change, send,
  };
}

function keysOf(fields: readonly Field[]): string[] {
  return fields.flatMap((field) => [field.key, ...keysOf(field.children)]);
}

/** `reward.name` offers the registered rewards, and `reward.params` are the chosen one's. */
function withReward(fields: Field[], rewards: readonly Reward[], values: Values): Field[] {
  const name = fields.find((field) => field.key === "reward")?.children.find((field) => field.key === "reward.name");
  if (name === undefined || rewards.length === 0) return fields;
  const chosen = rewards.find((reward) => reward.rewardId === (values["reward.name"] ?? name.fallback));
  const choosing = replaceField(fields, "reward.name", (field) => ({ ...field, kind: "choice", choices: rewards.map((reward) => reward.rewardId), description: chosen?.summary ?? field.description }));
  if (chosen === undefined) return choosing;
  const schema = chosen.paramsSchema as JsonSchema;
  return replaceField(choosing, "reward.params", (field) => ({ ...field, kind: "object", nullable: false, children: fieldsOf(schema, [], "reward.params", schema) }));
}

async function readyModels(): Promise<Model[]> {
  return (await listModels()).filter((model) => model.state === "STATE_READY");
}

async function newestVersions(): Promise<{ name: string; format: string }[]> {
  return (await listAllDatasets()).filter((dataset) => dataset.latestVersion).map((dataset) => ({ name: dataset.latestVersion, format: dataset.format }));
}

/** Full weights that the newest jobs have left: a job can start from them too. */
async function recentCheckpoints(): Promise<string[]> {
  const jobs = await listJobs(["JOB_STATE_SUCCEEDED", "JOB_STATE_CANCELLED"], 1, 20);
  const found = await Promise.all(jobs.items.map((one) => listCheckpoints(idOf(one.name)).catch(() => [])));
  return found.flat().filter((one) => one.state === "STATE_READY" && one.kind === "KIND_FULL").map((one) => one.name);
}

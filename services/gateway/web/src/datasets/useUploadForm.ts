import { computed, ref, shallowRef, watch } from "vue";
import { useI18n } from "vue-i18n";

import { idOf } from "../api/names";
import { asProblem, type Problem } from "../api/problem";
import type { Dataset, Format } from "../api/types";
import { listAllDatasets, listFormats } from "./api";
import { readOptions, sortUpload } from "./options";
import { useUpload } from "./uploads";

const ENDINGS = /(\.(jsonl|json|csv|parquet|gz|zst))+$/i;

/** What the upload page asks for, and what is wrong with it. */
export function useUploadForm() {
  const { t } = useI18n();
  const upload = useUpload();
  const { draft } = upload;
  const datasets = shallowRef<Dataset[]>([]);
  const formats = shallowRef<Format[]>([]);
  const loading = ref<Problem | null>(null);
  const sorted = computed(() => sortUpload(upload.problem?.violations ?? [], draft.options.mapping));
  const errors = ref<Record<string, string[]>>({});
  /** Of the dataset that is named, where it is there. */
  const known = computed(() => datasets.value.find((one) => idOf(one.name) === draft.dataset.trim()));

  async function load(): Promise<void> {
    try {
      [datasets.value, formats.value] = await Promise.all([listAllDatasets(), listFormats()]);
      loading.value = null;
    } catch (error) {
      loading.value = asProblem(error);
    }
  }

  function choose(files: FileList | null | undefined): void {
    draft.file = files?.[0] ?? draft.file;
    // `train.v2.jsonl.gz` → `train-v2`: what most people would type.
    draft.dataset ||= (draft.file?.name ?? "").replace(ENDINGS, "").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^[^a-z]+|-+$/g, "").slice(0, 63);
  }

  async function submit(): Promise<void> {
    const { fields, mistakes } = readOptions(draft.options);
    errors.value = Object.fromEntries(Object.entries(mistakes).map(([field, words]) => [field, [t(words)]]));
    if (Object.keys(mistakes).length > 0 || draft.file === null) return;
    await upload.start(draft.dataset.trim(), draft.format, draft.file, fields);
    errors.value = sorted.value.byField;
    await load();
  }

  /** What was said of a field holds no more once it is changed. */
  const written: [string, () => string][] = [
    ["file_name", () => draft.file?.name ?? ""],
    ["size_bytes", () => String(draft.file?.size)],
    ["dataset_id", () => draft.dataset],
    ["field_mapping", () => JSON.stringify(draft.options.mapping)],
    ["skip_invalid", () => draft.options.skip],
    ["split.name", () => draft.options.splitName],
    ["split.share", () => draft.options.splitShare],
    ["split.seed", () => draft.options.splitSeed],
  ];
  for (const [field, value] of written) {
    watch(value, () => {
      errors.value = Object.fromEntries(Object.entries(errors.value).filter(([one]) => one !== field && !one.startsWith(`${field}.`)));
    });
  }

  return { draft, formats, datasets, loading, known, errors, ofForm: computed(() => sorted.value.ofForm), load, choose, submit };
}

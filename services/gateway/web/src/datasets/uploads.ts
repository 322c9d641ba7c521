import { defineStore } from "pinia";
import { computed, reactive, ref, shallowRef } from "vue";

import { asProblem, type Problem } from "../api/problem";
import type { Upload, UploadChange } from "../api/types";
import { authorization } from "../session/token";
import { follow } from "../shared/follow";
import { announce, createDataset, deleteDataset, deleteUpload, getDataset, listUploads } from "./api";
import { noOptions, type OptionFields, type Options } from "./options";
import { hashFile, sendFile } from "./sending";

export type Phase = "idle" | "hashing" | "sending" | "validating" | "paused" | "done" | "failed";

/** What the form holds. */
export interface Draft {
  file: File | null;
  dataset: string;
  format: string;
  options: Options;
}

/** The upload at hand. It goes on while other pages are looked at. */
export const useUpload = defineStore("upload", () => {
  const phase = ref<Phase>("idle");
  const file = shallowRef<File | null>(null);
  const dataset = ref("");
  /** Bytes hashed or sent. */
  const done = ref(0);
  const upload = shallowRef<Upload | null>(null);
  const problem = shallowRef<Problem | null>(null);
  const running = computed(() => phase.value === "hashing" || phase.value === "sending" || phase.value === "validating");
  const draft = reactive<Draft>({ file: null, dataset: "", format: "messages", options: noOptions() });
  let controller = new AbortController();
  let asked: { format: string; options: OptionFields } = { format: "", options: {} };
  /** Of the dataset, where it was made for this file. */
  let madeEtag = "";

  /** `format` is that of the dataset where it has to be made. */
  async function start(into: string, format: string, chosen: File, options: OptionFields): Promise<void> {
    reset();
    file.value = chosen;
    dataset.value = into;
    asked = { format, options };
    await go();
  }

  /** From where it stands: a file that was hashed before is hashed again, since it may have been changed. */
  async function go(): Promise<void> {
    const chosen = file.value;
    if (chosen === null) return;
    controller = new AbortController();
    const { signal } = controller;
    problem.value = null;
    const progress = (bytes: number): void => void (done.value = bytes);
    try {
      await ensureDataset();
      phase.value = "hashing";
      done.value = 0;
      const sha256 = await hashFile(chosen, signal, progress);
      upload.value = await announce(dataset.value, chosen, sha256, asked.options);
      phase.value = "sending";
      done.value = Number(upload.value.receivedBytes);
      if (upload.value.state === "STATE_RECEIVING") upload.value = await sendFile(upload.value, chosen, signal, progress);
      phase.value = "validating";
      await watchChecks(upload.value, signal);
    } catch (error) {
      if (signal.aborted) return;
      const found = asProblem(error);
      if (upload.value === null && !found.passing) await takeBack();
      problem.value = found;
      phase.value = "failed";
    }
  }

  async function ensureDataset(): Promise<void> {
    try {
      await getDataset(dataset.value);
    } catch (error) {
      // What is wrong with a name is told when it is made, as the form calls it.
      if (![400, 404].includes(asProblem(error).status)) throw error;
      madeEtag = (await createDataset(dataset.value, asked.format)).etag;
    }
  }

  /** A dataset that was made for a file which is not taken goes again, so that its name is free for another format; not
   * where somebody else has begun to use it. */
  async function takeBack(): Promise<void> {
    if (madeEtag === "") return;
    try {
      const uploads = await listUploads(dataset.value);
      if (uploads.length < 2 && uploads.every((one) => one.state === "STATE_FAILED")) await deleteDataset(dataset.value, madeEtag);
    } catch {
      // It can be deleted on its page.
    }
    madeEtag = "";
  }

  async function watchChecks(from: Upload, signal: AbortSignal): Promise<void> {
    await follow<UploadChange>({
      path: `/v1/${from.name}:streamEvents`,
      headers: authorization,
      signal,
      onMessage: (message) => message.upload && (upload.value = message.upload),
      onState: (state, streamProblem) => state === "failed" && (problem.value = streamProblem),
    });
    if (signal.aborted) return;
    if (upload.value?.state === "STATE_FAILED") await takeBack();
    phase.value = upload.value?.state === "STATE_SUCCEEDED" ? "done" : "failed";
  }

  /** What has arrived stays; `go` goes on. */
  function pause(): void {
    phase.value = "paused";
    controller.abort();
  }

  /** Throw away what has arrived. */
  async function cancel(): Promise<void> {
    const name = phase.value === "validating" ? "" : upload.value?.name;
    controller.abort();
    if (name) await deleteUpload(name).catch(() => undefined);
    await takeBack();
    reset();
  }

  /** Back to the form with the same file, changed as a refusal suggests. */
  function retry(change: Partial<Options>): void {
    Object.assign(draft.options, change);
    reset();
  }

  /** Back to the form, for another file. */
  function another(): void {
    Object.assign(draft, { file: null, dataset: "", options: noOptions() });
    reset();
  }

  function reset(): void {
    controller.abort();
    phase.value = "idle";
    file.value = null;
    upload.value = null;
    problem.value = null;
    done.value = 0;
    madeEtag = "";
  }

  addEventListener("beforeunload", (event) => {
    if (phase.value === "hashing" || phase.value === "sending") event.preventDefault();
  });
  return { phase, file, dataset, done, upload, problem, running, draft, start, go, pause, cancel, retry, another };
});

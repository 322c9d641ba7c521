import { answer, api } from "../api/client";
import type { Algorithm, Checkpoint, JobState, Reward, Sample, TrainingJob, TrainingJobInput } from "../api/types";
import { project } from "../session/token";

const ENDED: readonly JobState[] = ["JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"];

export function hasEnded(job: TrainingJob): boolean {
  return ENDED.includes(job.state);
}

/** QUEUED and RUNNING; what is CANCELLING is already on its way. */
export function canCancel(job: TrainingJob): boolean {
  return !hasEnded(job) && job.state !== "JOB_STATE_CANCELLING";
}

export interface Page<T> {
  items: T[];
  more: boolean;
}

/** The first `pages` pages of a list that is asked page by page. */
export async function pagesOf<T>(pages: number, ask: (token: string) => Promise<{ items: T[]; next: string }>): Promise<Page<T>> {
  const items: T[] = [];
  let token = "";
  for (let page = 0; page < pages; page += 1) {
    const found = await ask(token);
    items.push(...found.items);
    token = found.next;
    if (token === "") break;
  }
  return { items, more: token !== "" };
}

export function listJobs(states: JobState[], pages: number, pageSize = 50): Promise<Page<TrainingJob>> {
  return pagesOf(pages, async (pageToken) => {
    const query = { pageSize, pageToken, states };
    const found = await answer(api.GET("/v1/projects/{project}/trainingJobs", { params: { path: { project: project.value }, query } }));
    return { items: found.trainingJobs, next: found.nextPageToken };
  });
}

function path(job: string): { project: string; trainingJob: string } {
  return { project: project.value, trainingJob: job };
}

export function getJob(job: string): Promise<TrainingJob> {
  return answer(api.GET("/v1/projects/{project}/trainingJobs/{trainingJob}", { params: { path: path(job) } }));
}

/** `requestId` makes a second try of the same call safe. */
export function createJob(job: TrainingJobInput, id: string, requestId: string, validateOnly: boolean): Promise<TrainingJob> {
  const query = { trainingJobId: id, requestId, validateOnly };
  return answer(api.POST("/v1/projects/{project}/trainingJobs", { params: { path: { project: project.value }, query }, body: job }));
}

export function cancelJob(job: string): Promise<TrainingJob> {
  return answer(api.POST("/v1/projects/{project}/trainingJobs/{trainingJob}:cancel", { params: { path: path(job) }, body: {} }));
}

export function deleteJob(job: string): Promise<unknown> {
  return answer(api.DELETE("/v1/projects/{project}/trainingJobs/{trainingJob}", { params: { path: path(job) } }));
}

export function deleteCheckpoint(job: string, checkpoint: string): Promise<Checkpoint> {
  const params = { path: { ...path(job), checkpoint } };
  return answer(api.DELETE("/v1/projects/{project}/trainingJobs/{trainingJob}/checkpoints/{checkpoint}", { params }));
}

export async function listCheckpoints(job: string): Promise<Checkpoint[]> {
  const query = { pageSize: 1000 };
  const found = await answer(api.GET("/v1/projects/{project}/trainingJobs/{trainingJob}/checkpoints", { params: { path: path(job), query } }));
  return found.checkpoints;
}

export function getCheckpoint(job: string, checkpoint: string): Promise<Checkpoint> {
  const params = { path: { ...path(job), checkpoint } };
  return answer(api.GET("/v1/projects/{project}/trainingJobs/{trainingJob}/checkpoints/{checkpoint}", { params }));
}

export function listSamples(job: string, step: string, pages: number): Promise<Page<Sample>> {
  return pagesOf(pages, async (pageToken) => {
    const query = { pageSize: 50, pageToken, ...(step !== "" && { step }) };
    const found = await answer(api.GET("/v1/projects/{project}/trainingJobs/{trainingJob}/samples", { params: { path: path(job), query } }));
    return { items: found.samples, next: found.nextPageToken };
  });
}

export async function listAlgorithms(): Promise<Algorithm[]> {
  return (await answer(api.GET("/v1/algorithms", {}))).algorithms as Algorithm[];
}

export async function listRewards(): Promise<Reward[]> {
  return (await answer(api.GET("/v1/rewards", {}))).rewards as Reward[];
}

/** Where a job's stream of that kind is read. */
export function streamPath(job: string, kind: "streamEvents" | "streamMetrics" | "streamLogs"): string {
  return `/v1/projects/${encodeURIComponent(project.value)}/trainingJobs/${encodeURIComponent(job)}:${kind}`;
}

import { answer, api } from "../api/client";
import type { components } from "../api/openapi";
import type { Model } from "../api/types";
import { project } from "../session/token";

export type ModelSource = components["schemas"]["ModelSourceInput"];

export async function listModels(): Promise<Model[]> {
  const params = { path: { project: project.value }, query: { pageSize: 1000 } };
  return (await answer(api.GET("/v1/projects/{project}/models", { params }))).models;
}

/** Whether it judges conversations, and writes none: no job starts from it. */
export function scores(model: Model): boolean {
  return model.kind === "KIND_REWARD_MODEL";
}

export function getModel(model: string): Promise<Model> {
  return answer(api.GET("/v1/projects/{project}/models/{model}", { params: { path: { project: project.value, model } } }));
}

export function deleteModel(model: string): Promise<unknown> {
  return answer(api.DELETE("/v1/projects/{project}/models/{model}", { params: { path: { project: project.value, model } } }));
}

/** Of `job/step-100`; a full name stays as it is. */
export function checkpointName(text: string): string {
  const [job, step, ...more] = text.split("/");
  return job && step && more.length === 0 ? `projects/${project.value}/trainingJobs/${job}/checkpoints/${step}` : text;
}

export function importModel(modelId: string, source: ModelSource): Promise<Model> {
  const body = { model: { source }, modelId };
  return answer(api.POST("/v1/projects/{project}/models:import", { params: { path: { project: project.value } }, body }));
}

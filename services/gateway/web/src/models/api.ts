import { answer, api } from "../api/client";
import type { components } from "../api/openapi";
import type { Model } from "../api/types";
import { project } from "../session/token";

export type ModelSource = components["schemas"]["ModelSourceInput"];

export async function listModels(): Promise<Model[]> {
  const params = { path: { project: project.value }, query: { pageSize: 1000 } };
  return (await answer(api.GET("/v1/projects/{project}/models", { params }))).models;
}

export function getModel(model: string): Promise<Model> {
  return answer(api.GET("/v1/projects/{project}/models/{model}", { params: { path: { project: project.value, model } } }));
}

export function importModel(modelId: string, source: ModelSource): Promise<Model> {
  const body = { model: { source }, modelId };
  return answer(api.POST("/v1/projects/{project}/models:import", { params: { path: { project: project.value } }, body }));
}

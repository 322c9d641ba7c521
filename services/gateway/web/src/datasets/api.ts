import { answer, api } from "../api/client";
import type { Dataset, DatasetVersion, Format, Row, Upload } from "../api/types";
import { pagesOf, type Page } from "../jobs/api";
import { project } from "../session/token";
import type { OptionFields } from "./options";

export async function listAllDatasets(): Promise<Dataset[]> {
  return (await listDatasets(1, 1000)).items;
}

export function listDatasets(pages: number, pageSize = 50): Promise<Page<Dataset>> {
  return pagesOf(pages, async (pageToken) => {
    const params = { path: { project: project.value }, query: { pageSize, pageToken } };
    const found = await answer(api.GET("/v1/projects/{project}/datasets", { params }));
    return { items: found.datasets, next: found.nextPageToken };
  });
}

export async function listFormats(): Promise<Format[]> {
  return (await answer(api.GET("/v1/formats", {}))).formats as Format[];
}

function path(dataset: string): { project: string; dataset: string } {
  return { project: project.value, dataset };
}

export function getDataset(dataset: string): Promise<Dataset> {
  return answer(api.GET("/v1/projects/{project}/datasets/{dataset}", { params: { path: path(dataset) } }));
}

export function createDataset(id: string, format: string): Promise<Dataset> {
  const params = { path: { project: project.value }, query: { datasetId: id } };
  return answer(api.POST("/v1/projects/{project}/datasets", { params, body: { format } }));
}

export async function listVersions(dataset: string): Promise<DatasetVersion[]> {
  const params = { path: path(dataset), query: { pageSize: 1000 } };
  return (await answer(api.GET("/v1/projects/{project}/datasets/{dataset}/versions", { params }))).datasetVersions;
}

export function getVersion(dataset: string, version: string): Promise<DatasetVersion> {
  const params = { path: { ...path(dataset), version } };
  return answer(api.GET("/v1/projects/{project}/datasets/{dataset}/versions/{version}", { params }));
}

export async function listRows(dataset: string, version: string, first: number, count: number): Promise<Row[]> {
  const query = { pageSize: count, firstRowIndex: String(first) };
  const params = { path: { ...path(dataset), version }, query };
  return (await answer(api.GET("/v1/projects/{project}/datasets/{dataset}/versions/{version}/rows", { params }))).rows;
}

export async function listUploads(dataset: string): Promise<Upload[]> {
  const params = { path: path(dataset), query: { pageSize: 20 } };
  return (await answer(api.GET("/v1/projects/{project}/datasets/{dataset}/uploads", { params }))).uploads;
}

/** An upload of the same file that has not ended is found again. */
export function announce(dataset: string, file: File, sha256: string, options: OptionFields): Promise<Upload> {
  const body = { fileName: file.name, sizeBytes: String(file.size), sha256, ...options };
  return answer(api.POST("/v1/projects/{project}/datasets/{dataset}/uploads", { params: { path: path(dataset) }, body }));
}

function uploadPath(name: string): { project: string; dataset: string; upload: string } {
  const [, inProject = "", , dataset = "", , upload = ""] = name.split("/");
  return { project: inProject, dataset, upload };
}

export function getUpload(name: string): Promise<Upload> {
  return answer(api.GET("/v1/projects/{project}/datasets/{dataset}/uploads/{upload}", { params: { path: uploadPath(name) } }));
}

export function commit(name: string): Promise<Upload> {
  const params = { path: uploadPath(name) };
  return answer(api.POST("/v1/projects/{project}/datasets/{dataset}/uploads/{upload}:commit", { params, body: {} }));
}

export async function deleteUpload(name: string): Promise<void> {
  await api.DELETE("/v1/projects/{project}/datasets/{dataset}/uploads/{upload}", { params: { path: uploadPath(name) } });
}

/** With an `etag` only while it is as it was. */
export function deleteDataset(dataset: string, etag = ""): Promise<unknown> {
  return answer(api.DELETE("/v1/projects/{project}/datasets/{dataset}", { params: { path: path(dataset), query: { etag } } }));
}

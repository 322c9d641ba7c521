import type { components } from "./openapi";

type Schemas = components["schemas"];
// JSON may leave a message out; an entry of a registry always says what it is.
type Registered<T> = T & { entry: Schemas["RegistryEntry"] };

export type Algorithm = Registered<Schemas["Algorithm"]>;
export type Checkpoint = Schemas["Checkpoint"];
export type Dataset = Schemas["Dataset"];
export type DatasetVersion = Schemas["DatasetVersion"];
export type Finding = Schemas["Finding"];
export type Format = Registered<Schemas["Format"]>;
export type JobEvent = Schemas["StreamJobEventsResponse"];
export type JobState = Schemas["JobState"];
export type LogLine = Schemas["LogLine"];
export type Logs = Schemas["StreamLogsResponse"];
export type Metrics = Schemas["StreamMetricsResponse"];
export type Model = Schemas["Model"];
export type Reward = Registered<Schemas["Reward"]>;
export type Row = Schemas["Row"];
export type Sample = Schemas["Sample"];
export type JobWarning = Schemas["JobWarning"];
export type TrainingJob = Schemas["TrainingJob"];
export type TrainingJobInput = Schemas["TrainingJobInput"];
export type Upload = Schemas["Upload"];
export type UploadInput = Schemas["UploadInput"];
export type UploadChange = Schemas["StreamUploadEventsResponse"];

/** Resource names, `projects/p/trainingJobs/j`, and what a person calls them. */

/** `j` of `projects/p/trainingJobs/j`. */
export function idOf(name: string): string {
  return name.slice(name.lastIndexOf("/") + 1);
}

/** `digits:3` of a dataset version, `job/step-100` of a checkpoint, else the id. */
export function shortName(name: string): string {
  const [, , collection, id, child, childId] = name.split("/");
  if (id === undefined) return name;
  if (collection === "datasets" && child === "versions") return `${id}:${childId}`;
  if (child !== undefined) return `${id}/${childId}`;
  return id;
}

/** Where the page shows a resource; empty where it has no page. */
export function pathOf(name: string): string {
  const [, , collection, id, child, childId] = name.split("/");
  if (id === undefined) return "";
  if (collection === "trainingJobs") return child === "checkpoints" ? `/jobs/${id}/checkpoints` : `/jobs/${id}`;
  if (collection === "datasets") return child === "versions" ? `/datasets/${id}/versions/${childId}` : `/datasets/${id}`;
  if (collection === "models") return `/models/${id}`;
  return "";
}

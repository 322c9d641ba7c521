import { createRouter, createWebHistory } from "vue-router";

import { i18n } from "./i18n";

// The first part of each path is known to services/gateway/pages.py, which answers it with this page.
export const router = createRouter({
  history: createWebHistory(),
  routes: [
    { path: "/", redirect: "/jobs" },
    { path: "/jobs", component: () => import("./jobs/JobsPage.vue"), meta: { title: "nav.jobs" } },
    { path: "/jobs/new", component: () => import("./jobs/NewJobPage.vue"), meta: { title: "newJob.title" } },
    { path: "/jobs/:job/:tab(metrics|logs|samples|checkpoints|attempts|config)?", component: () => import("./jobs/JobPage.vue"), props: true },
    { path: "/datasets", component: () => import("./datasets/DatasetsPage.vue"), meta: { title: "nav.datasets" } },
    { path: "/datasets/upload", component: () => import("./datasets/UploadPage.vue"), meta: { title: "upload.title" } },
    { path: "/datasets/:dataset", component: () => import("./datasets/DatasetPage.vue"), props: true },
    { path: "/datasets/:dataset/versions/:version", component: () => import("./datasets/VersionPage.vue"), props: true },
    { path: "/models", component: () => import("./models/ModelsPage.vue"), meta: { title: "nav.models" } },
    { path: "/models/import", component: () => import("./models/ImportPage.vue"), meta: { title: "importModel.title" } },
    { path: "/models/:model", component: () => import("./models/ModelPage.vue"), props: true },
    { path: "/:rest(.*)", component: () => import("./shared/NotFound.vue"), meta: { title: "notFound.title" } },
  ],
});

router.afterEach((to) => {
  const title = typeof to.meta["title"] === "string" ? i18n.global.t(to.meta["title"]) : Object.values(to.params)[0];
  document.title = `${String(title)} — rlhf-mesh`;
});

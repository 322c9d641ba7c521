import vue from "@vitejs/plugin-vue";
import { defineConfig } from "vite";

// `npm run dev` hands everything that is not the page's on to a mesh: MESH=http://127.0.0.1:PORT npm run dev
const mesh = process.env["MESH"] ?? "http://127.0.0.1:8080";

export default defineConfig({
  plugins: [vue()],
  build: {
    target: "es2022",
    // A data: URL is not of the page's own origin, which is all that its content security policy lets in.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 2000,
    rollupOptions: { input: ["index.html", "docs.html"] },
  },
  worker: { format: "es" },
  server: { proxy: { "/v1": { target: mesh, ws: true }, "/openapi.json": mesh, "/healthz": mesh, "/readyz": mesh } },
});

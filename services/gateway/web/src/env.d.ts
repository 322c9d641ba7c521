/// <reference types="vite/client" />
declare module "swagger-ui-dist/swagger-ui-es-bundle.js" {
  interface SwaggerUi {
    preauthorizeApiKey(scheme: string, key: string): void;
  }
  const make: (options: Record<string, unknown>) => SwaggerUi;
  export default make;
}

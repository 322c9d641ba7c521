// A client generated from proto/ calls the gateway; what it saw is printed as JSON, for test_typescript_client.py.
// node main.ts http://127.0.0.1:PORT TOKEN

import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { compressionGzip, createGrpcTransport } from "@connectrpc/connect-node";

import { DatasetService } from "./gen/rlhf/dataset/v1/dataset_service_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const [address, token] = process.argv.slice(2) as [string, string];

const authorize: Interceptor = (next) => (request) => {
  request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};
const transport = createGrpcTransport({
  baseUrl: address,
  interceptors: [authorize],
  acceptCompression: [compressionGzip],
  sendCompression: compressionGzip,
});
const datasets = createClient(DatasetService, transport);
const seen: Record<string, unknown> = {};

async function refused(call: () => Promise<unknown>): Promise<ConnectError> {
  try {
    await call();
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("nothing was refused");
}

async function unary(): Promise<void> {
  const trailers: Record<string, string> = {};
  const reply = await datasets.getDataset(
    { name: "projects/p/datasets/trailers" },
    {
      headers: { "x-mine": "1", "x-mine-bin": Buffer.from([0, 254]).toString("base64") },
      onHeader: (headers) => (trailers["x-first"] = headers.get("x-first") ?? ""),
      onTrailer: (found) => found.forEach((value, key) => (trailers[key] = value)),
    },
  );
  seen["unary"] = { name: reply.name, format: reply.format, trailers };
}

async function serverStream(): Promise<void> {
  const counts: string[] = [];
  for await (const reply of datasets.streamUploadEvents({ name: "u" })) {
    counts.push(String(reply.upload?.receivedBytes));
  }
  seen["serverStream"] = counts;
}

async function upload(): Promise<void> {
  async function* messages() {
    yield { name: "u", offsetBytes: 0n, chunk: new Uint8Array(1024 * 1024).fill(1) };
    for (let index = 1; index < 8; index++) {
      yield { chunk: new Uint8Array(1024 * 1024).fill(index + 1) };
    }
  }
  seen["upload"] = String((await datasets.writeUpload(messages())).receivedBytes);
}

async function errors(): Promise<void> {
  const error = await refused(() => datasets.getDataset({ name: "projects/p/datasets/invalid" }));
  const fields = error.findDetails(BadRequestSchema).flatMap((detail) => detail.fieldViolations.map((v) => v.field));
  const reasons = error.findDetails(ErrorInfoSchema).map((detail) => detail.reason);
  seen["error"] = { code: Code[error.code], fields, reasons };
  const late = await refused(() => datasets.getDataset({ name: "projects/p/datasets/slow" }, { timeoutMs: 300 }));
  seen["deadline"] = Code[late.code];
  const nobody = createClient(DatasetService, createGrpcTransport({ baseUrl: address }));
  const stranger = await refused(() => nobody.getDataset({ name: "projects/p/datasets/d" }));
  seen["stranger"] = Code[stranger.code];
}

async function cancellation(): Promise<void> {
  const controller = new AbortController();
  const counts: string[] = [];
  const error = await refused(async () => {
    for await (const reply of datasets.streamUploadEvents({ name: "endless" }, { signal: controller.signal })) {
      counts.push(String(reply.upload?.receivedBytes));
      if (counts.length === 3) {
        controller.abort();
      }
    }
  });
  seen["cancelled"] = { code: Code[error.code], received: counts.length };
}

await unary();
await serverStream();
await upload();
await errors();
await cancellation();
console.log(JSON.stringify(seen));

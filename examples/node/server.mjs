// Answers with the time, as JSON.
import { createServer } from "node:http";

const server = createServer((request, response) => {
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify({ path: request.url, time: new Date() }) + "\n");
});

server.listen(3000, () => console.log("clock listens on port 3000"));

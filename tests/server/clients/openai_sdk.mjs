// OpenAI's own JavaScript client over both APIs. Arguments: the server's URL, the model. Run by test_node_clients.py.
// Prints a line of JSON for each action: the API, the action, and the result.
import OpenAI from "openai";
import { zodResponsesFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const report = (...line) => console.log(JSON.stringify(line));
const SUM = "What is 27 + 45?";
const WEATHER = "What's the weather in Paris?";
const SUNNY = '{"temperature":21,"condition":"sunny"}';
const City = z.object({ city: z.string() });
const Person = z.object({ name: z.string(), age: z.number().int(), city: z.string() });
const ABOUT = "Tom is 34 years old and lives in Rome. Answer in JSON with the keys name, age and city.";
const description = "Current weather in a city.";

const names = (await Array.fromAsync(client.models.list())).map(({ id }) => id);
report("models", "list", names);

{
  const user = (content) => [{ role: "user", content }];
  const options = { model, temperature: 0, max_completion_tokens: 300 };
  const chunks = await Array.fromAsync(
    await client.chat.completions.create({
      ...options, messages: user(SUM), stream: true, stream_options: { include_usage: true },
    }),
  );
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  report("chat", "stream", [text, chunks.at(-1).usage.completion_tokens > 0]);

  const asked = [];
  const get_weather = {
    name: "get_weather", description, parse: JSON.parse, parameters: z.toJSONSchema(City),
    function: ({ city }) => (asked.push(city), SUNNY),
  };
  const tools = [{ type: "function", function: get_weather }];
  for (const stream of [false, true]) {
    const runner = client.chat.completions.runTools({ ...options, messages: user(WEATHER), tools, stream });
    report("chat", stream ? "streamed tools" : "tools", await runner.finalContent());
  }
  report("chat", "asked", asked);

  const response_format = zodResponseFormat(Person, "person");
  const parsed = await client.chat.completions.parse({ ...options, messages: user(ABOUT), response_format });
  report("chat", "parsed", parsed.choices[0].message.parsed);
}

{
  const options = { model, temperature: 0, max_output_tokens: 300 };
  const tools = [zodResponsesFunction({ name: "get_weather", description, parameters: City })];
  const streamed = client.responses.stream({ ...options, input: WEATHER, tools });
  const kinds = new Set((await Array.fromAsync(streamed)).map((event) => event.type));
  const first = await streamed.finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  report("responses", "call", [call.name, call.parsed_arguments, kinds.has("response.function_call_arguments.delta")]);

  const output = { type: "function_call_output", call_id: call.call_id, output: SUNNY };
  const kept = await client.responses.create({ ...options, tools, previous_response_id: first.id, input: [output] });
  const replayed = [{ role: "user", content: WEATHER }, ...first.output, output];
  const stateless = await client.responses.create({ ...options, tools, store: false, input: replayed });
  report("responses", "results", [kept.output_text, stateless.output_text]);

  const text = { format: zodTextFormat(Person, "person") };
  report("responses", "parsed", (await client.responses.parse({ ...options, input: ABOUT, text })).output_parsed);
}

const error = await client.responses.create({ model: "nobody", input: "hello" }).catch((thrown) => thrown);
report("models", "unknown", [error instanceof OpenAI.NotFoundError, error.code]);

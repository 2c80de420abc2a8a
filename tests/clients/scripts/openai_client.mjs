// The openai package for JavaScript: chat, a stream, a tool that it runs, an object, an embedding, the list.
import OpenAI from "openai";
import { API_KEY, CITY, CITY_SCHEMA, getWeather, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, tell, VECTORS, WEATHER } from "./session.mjs";

const client = new OpenAI({ baseURL: OPENAI_URL, apiKey: API_KEY, maxRetries: 0 });
const asking = (content) => ({ model: MODEL, temperature: 0, messages: [{ role: "user", content }] });

const plain = await client.chat.completions.create({ ...asking(PLAIN), max_tokens: MAX_TOKENS });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asking(STORY), max_tokens: MAX_TOKENS, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const tool = {
  type: "function",
  function: { name: "get_weather", function: getWeather, parse: JSON.parse, description: "Weather of a city", parameters: CITY_SCHEMA },
};
const after = await client.chat.completions.runTools({ ...asking(WEATHER), tools: [tool] }).finalContent();
const response_format = { type: "json_schema", json_schema: { name: "city", strict: true, schema: CITY_SCHEMA } };
const formed = await client.chat.completions.create({ ...asking(CITY), response_format });
const vectors = await client.embeddings.create({ model: VECTORS, input: "a ship" });
const models = [];
for await (const model of client.models.list()) models.push(model.id);

tell({
  plain: plain.choices[0].message.content,
  tokens: plain.usage.completion_tokens,
  streamed,
  after,
  object: JSON.parse(formed.choices[0].message.content),
  embedding: vectors.data[0].embedding.length,
  models,
});

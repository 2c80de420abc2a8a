// LangChain for JavaScript with OpenAI's API: invoke, stream, a bound tool, an object, an embedding.
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { API_KEY, CITY, CITY_SCHEMA, getWeather, MAX_TOKENS, MODEL, OPENAI_URL, PLAIN, STORY, tell, VECTORS, WEATHER } from "./session.mjs";

const configuration = { baseURL: OPENAI_URL };
const common = { model: MODEL, apiKey: API_KEY, configuration, temperature: 0, maxRetries: 0 };
const chat = new ChatOpenAI(common);
const short = new ChatOpenAI({ ...common, maxTokens: MAX_TOKENS });

const plain = await short.invoke(PLAIN);
let streamed = "";
for await (const chunk of await short.stream(STORY)) streamed += chunk.content;
const definition = { name: "get_weather", description: "Weather of a city", parameters: CITY_SCHEMA };
const acting = chat.bindTools([{ type: "function", function: definition }]);
const call = await acting.invoke(WEATHER);
const results = call.tool_calls.map((one) => new ToolMessage({ content: getWeather(one.args), tool_call_id: one.id }));
const next = await acting.invoke([new HumanMessage(WEATHER), call, ...results]);
const object = await chat.withStructuredOutput(CITY_SCHEMA, { method: "jsonSchema", name: "city" }).invoke(CITY);
const vectors = new OpenAIEmbeddings({ model: VECTORS, apiKey: API_KEY, configuration, maxRetries: 0 });

tell({
  plain: plain.content,
  tokens: plain.usage_metadata.output_tokens,
  streamed,
  after: next.content,
  object,
  embedding: (await vectors.embedQuery("a ship")).length,
});

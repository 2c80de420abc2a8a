// LangChain for JavaScript with Anthropic's API: invoke, stream, a bound tool.
import { ChatAnthropic } from "@langchain/anthropic";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { API_KEY, BASE_URL, CITY_SCHEMA, getWeather, MAX_TOKENS, MODEL, PLAIN, STORY, tell, WEATHER } from "./session.mjs";

const common = { model: MODEL, apiKey: API_KEY, anthropicApiUrl: BASE_URL, temperature: 0, maxRetries: 0 };
const chat = new ChatAnthropic({ ...common, maxTokens: 200 });
const short = new ChatAnthropic({ ...common, maxTokens: MAX_TOKENS });

const plain = await short.invoke(PLAIN);
let streamed = "";
for await (const chunk of await short.stream(STORY)) streamed += chunk.text;
const acting = chat.bindTools([{ name: "get_weather", description: "Weather of a city", input_schema: CITY_SCHEMA }]);
const call = await acting.invoke(WEATHER);
const results = call.tool_calls.map((one) => new ToolMessage({ content: getWeather(one.args), tool_call_id: one.id }));
const next = await acting.invoke([new HumanMessage(WEATHER), call, ...results]);

tell({ plain: plain.text, tokens: plain.usage_metadata.output_tokens, streamed, after: next.text });

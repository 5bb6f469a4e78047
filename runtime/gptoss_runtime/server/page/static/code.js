// The current settings as a program: curl, Python, JavaScript. The key is never written out, only its variable.

/** Generates a program that sends `body` to this server. */
export function generateCode(language, body, origin) {
  return { curl, python, javascript }[language](body, origin);
}

function curl(body, origin) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [
    `curl ${origin}/v1/chat/completions \\`,
    `  -H "Authorization: Bearer $GPTOSS_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${json}'`,
  ].join("\n");
}

function python(body, origin) {
  const known = Object.entries(body).map(([name, value]) => `    ${name}=${pythonLiteral(value, 1)},`);
  return [
    "import os",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=os.environ.get("GPTOSS_API_KEY", "none"))`,
    "answer = client.chat.completions.create(",
    ...known,
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

function javascript(body, origin) {
  return [
    'import OpenAI from "openai";',
    "",
    `const client = new OpenAI({ baseURL: "${origin}/v1", apiKey: process.env.GPTOSS_API_KEY ?? "none" });`,
    `const answer = await client.chat.completions.create(${JSON.stringify(body, null, 2)});`,
    "console.log(answer.choices[0].message.content);",
  ].join("\n");
}

function pythonLiteral(value, depth) {
  const inner = "    ".repeat(depth + 1);
  const outer = "    ".repeat(depth);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((item) => inner + pythonLiteral(item, depth + 1)).join(",\n")},\n${outer}]` : "[]";
  }
  if (typeof value === "object") {
    const pairs = Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${pythonLiteral(item, depth + 1)}`);
    return `{${pairs.join(", ")}}`;
  }
  return JSON.stringify(value);
}

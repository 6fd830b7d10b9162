// What the page asks of its server.

/** Send JSON; an error comes in the server's words. */
export async function send(path, content, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(content), signal,
    });
  } catch (error) {
    throw new Error("The server does not answer. Is persona-lens still running?");
  }
  if (!response.ok) throw new Error(await readError(response));
  return response;
}

/** Read a setup. */
export async function read(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(await readError(response));
  return response.json();
}

/** Yield the events of an answer as they come, one JSON object a line. */
export async function* readLines(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function readError(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return text || `The server answered with status ${response.status}.`;
  }
}

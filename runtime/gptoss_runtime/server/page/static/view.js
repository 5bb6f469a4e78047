// What a conversation looks like. Text from people and models only ever goes in as textContent.

/** An element: `make("p", {className: "quiet"}, "text", child)`. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** What someone wrote. */
export function userMessage(text) {
  return make("article", { className: "user" }, make("h2", { className: "hidden", textContent: "You" }), prose(text));
}

/** What the API said is wrong. */
export function errorMessage(error) {
  const code = [error.status || null, error.code, error.param].filter(Boolean).join(", ");
  const element = make("article", { className: "error" }, make("p", { textContent: error.message }));
  element.setAttribute("role", "alert");
  if (code) element.append(make("p", { className: "quiet", textContent: code }));
  return element;
}

/** An answer that grows: reasoning folded, text, tool calls, figures. */
export class AnswerView {
  constructor(answer) {
    this.answer = answer;
    this.reasoning = make("div", { className: "reasoning" });
    this.summary = make("summary", { textContent: "Reasoning" });
    this.fold = make("details", { hidden: true }, this.summary, this.reasoning);
    this.body = make("div", { className: "body" });
    this.calls = make("div", { className: "calls" });
    this.figures = make("p", { className: "quiet figures" });
    const name = make("h2", { className: "hidden", textContent: "Model" });
    this.element = make("article", { className: "answer" }, name, this.fold, this.body, this.calls, this.figures);
    this.element.setAttribute("aria-busy", "true");
    this.pending = 0;
  }

  /** Draws what changed, at most once a frame. */
  update() {
    this.pending ||= requestAnimationFrame(() => {
      this.pending = 0;
      this.#draw();
    });
  }

  /** The answer has ended; `note` says how, where it did not end by itself. */
  end(note, figures) {
    cancelAnimationFrame(this.pending);
    this.#draw();
    this.element.setAttribute("aria-busy", "false");
    this.summary.textContent = "Reasoning";
    if (note) this.body.append(make("p", { className: "note", textContent: note }));
    this.figures.textContent = figures;
  }

  /** Puts the cursor where the first result is typed. */
  focus() {
    this.fields?.[0]?.focus();
  }

  #draw() {
    const { content, reasoning, calls } = this.answer;
    this.fold.hidden = !reasoning;
    this.reasoning.textContent = reasoning;
    this.summary.textContent = content || calls.length ? "Reasoning" : "Reasoning …";
    this.body.replaceChildren(...(content ? [prose(content)] : []));
    this.calls.replaceChildren(...calls.filter(Boolean).map((call) => callLine(call)));
  }

  /** Lets someone answer the calls by hand; resolves with their results in order. */
  askForResults() {
    const fields = this.answer.calls.map((call, index) => {
      const field = make("textarea", { rows: 1, className: "code", placeholder: "What the tool returns" });
      field.setAttribute("aria-label", `Result of ${call.function.name}, call ${index + 1}`);
      this.calls.children[index].append(field);
      return field;
    });
    const button = make("button", { type: "button", className: "primary", textContent: "Return results" });
    this.calls.append(button);
    this.fields = fields;
    this.focus();
    return new Promise((resolve) => {
      const done = () => {
        for (const field of fields) field.replaceWith(make("p", { className: "result", textContent: `← ${field.value}` }));
        button.remove();
        resolve(fields.map((field) => field.value));
      };
      button.addEventListener("click", done);
      for (const field of fields) {
        field.addEventListener("keydown", (event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            const next = fields[fields.indexOf(field) + 1];
            if (next) next.focus();
            else done();
          }
        });
      }
    });
  }
}

function callLine(call) {
  return make("div", { className: "call" }, make("code", { textContent: `→ ${call.function.name}(${call.function.arguments})` }));
}

/** Text, with what stands between three backticks as code. */
function prose(text) {
  const element = make("div", { className: "prose" });
  text.split(/^```[^\n]*\n?/m).forEach((part, index) => {
    if (part === "") return;
    if (index % 2 === 0) element.append(make("p", { textContent: part.replace(/^\n+|\n+$/g, "") }));
    else element.append(make("pre", {}, make("code", { textContent: part.replace(/\n$/, "") })));
  });
  return element;
}

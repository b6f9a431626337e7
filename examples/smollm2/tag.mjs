// Tags English paragraphs: one JSON string a line in, one JSON array of sentences a line out. A
// sentence is [token, space before it, part of speech, lemma, entity or ""] for each token.
import { createInterface } from "node:readline";
import winkNLP from "wink-nlp";
import model from "wink-eng-lite-web-model";

const nlp = winkNLP(model);
const its = nlp.its;
for await (const line of createInterface({ input: process.stdin })) {
  const document = nlp.readDoc(JSON.parse(line));
  const entity = new Map();
  document.entities().each((found) => {
    const [first, last] = found.out(its.span);
    for (let i = first; i <= last; i++) entity.set(i, `${found.out(its.type)} ${first}`);
  });
  const sentences = [];
  document.sentences().each((sentence) => {
    const words = [];
    sentence.tokens().each((token) => {
      words.push([
        token.out(), token.out(its.precedingSpaces), token.out(its.pos), token.out(its.lemma),
        entity.get(token.index()) ?? "",
      ]);
    });
    sentences.push(words);
  });
  console.log(JSON.stringify(sentences));
}

/** Labels and numbers as a person reads them. */

export function named(label: string): string {
  if (label === "COVID") return "COVID-19";
  const words = label.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1).toLowerCase();
}

/** A probability in percent; never 0 or 100, which no model knows. */
export function percent(p: number): string {
  if (p > 0.995) return "> 99\u00a0%";
  if (p < 0.005) return "< 1\u00a0%";
  return `${Math.round(p * 100)}\u00a0%`;
}

export function outOfHundred(p: number): string {
  const right = Math.min(99, Math.max(1, Math.round(p * 100)));
  return `Of 100 films with such an answer, about ${right} are what it says, if they are like those it was calibrated on.`;
}

export function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(0);
}

export function joined(words: string[]): string {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
}

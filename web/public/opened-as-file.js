// A browser runs no modules from a page that was opened as a file. Say so, in place of a page that does nothing.
if (location.protocol === "file:")
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("answer").textContent =
      "This page was opened as a file, and browsers load no model that way. Serve its folder, for example with " +
      "python3 -m http.server, and open http://localhost:8000.";
  });

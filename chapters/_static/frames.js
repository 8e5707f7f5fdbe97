/* On a phone wide figures scroll in a frame of their own (course.css). While they do, the frame can be focused, so that
   arrow keys scroll it; the theme does the same for code and tables. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const frames = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const figure of document.querySelectorAll(".bd-article figure")) frames.observe(figure);
});

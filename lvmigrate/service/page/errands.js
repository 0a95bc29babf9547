// The journal's errands of a job: what was written of each move, whoever did it.

import { get } from "./api.js";

/** The clocks of the job and of the journal are one; what is written of each is a little apart. */
const APART_S = 2;

/** Where an errand's report is: the service makes it. */
export const report = (errand) => `/v1/history/${encodeURIComponent(errand)}/page`;

/** One errand with everything that is written of it. */
export const storyOf = (errand) => get(`/v1/history/${encodeURIComponent(errand)}`);

/** Whether it was done while the job was. */
export const within = (job, errand) =>
  job.begun !== null && errand.began >= job.begun - APART_S && (job.ended === null || errand.began <= job.ended + APART_S);

/** Those of a guest, or of the nodes of a drain, newest first. */
export async function errandsOf(job, about) {
  const { errands } = await get(`/v1/history?most=20&instance=${encodeURIComponent(about)}`);
  return errands.filter((each) => within(job, each));
}

/** What was written of the job itself: its curves from their beginning, and how each step went. */
export async function story(job) {
  if (job.result?.errand) return storyOf(job.result.errand);
  const its = await errandsOf(job, job.uuid || job.about);
  const found = its.find((each) => each.tasklet === job.what) ?? its[0];
  return found ? storyOf(found.id) : null;
}
